"""Prompts and answers for training and evaluation: `AIMEDataModule`.

It reads problems (`sources.py`) or generates them (`problems.py`), keeps near-duplicates of
validation problems out of training, renders prompts as the model in training reads them, and deals
them out to the processes (`dataloaders.py`).
"""

from __future__ import annotations

import os
import random
import re
import unicodedata
from typing import Any, Literal

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from transformers import PreTrainedTokenizerBase
from typing_extensions import override

from lightning_vcppo.common.errors import require
from lightning_vcppo.common.files import is_trial
from lightning_vcppo.common.fresh_start import begins_anew
from lightning_vcppo.common.seeding import stream_seed
from lightning_vcppo.common.terminal import waiting_for
from lightning_vcppo.data.generator import ProblemSettings, generate_problems
from lightning_vcppo.data.loaders import EvalLoader, TrainLoader
from lightning_vcppo.data.problem import Problem
from lightning_vcppo.data.prompts import (
    HELD_OUT,
    INSTRUCTION,
    PromptBatch,
    Template,
    render_prompt,
    uses_chat,
)
from lightning_vcppo.data.sources import is_generator, load_problems
from lightning_vcppo.models.checks import check_same_tokens
from lightning_vcppo.models.loading import load_tokenizer

__all__ = ["INSTRUCTION", "AIMEDataModule", "load_problems", "render_prompt"]

Paths = str | list[str] | None
TRIAL_PROMPTS = 16
"""Prompts that are evaluated with `--trainer.fast_dev_run`."""


class AIMEDataModule(pl.LightningDataModule):
    """Problems with integer answers, from files, data sets or a generator, as tokenised prompts."""

    def __init__(
        self,
        path: Paths = None,
        val_path: Paths = None,
        evaluation_sets: dict[str, Paths] | None = None,
        problem_field: str | None = None,
        answer_field: str | None = None,
        drop_invalid: bool = False,
        split: str | None = None,
        val_split: str | None = None,
        config: str | None = None,
        generated: ProblemSettings = ProblemSettings(),
        train_size: int = 1000,
        val_size: int = 64,
        prompts_per_rollout: int = 64,
        val_batch_size: int = 64,
        max_prompt_length: int = 2048,
        on_long_prompt: Literal["error", "drop"] = "error",
        chat_template: Template = "auto",
        instruction: str = INSTRUCTION,
        system_prompt: str | None = None,
        tokenizer: str | PreTrainedTokenizerBase | None = None,
        seed: int | None = None,
    ) -> None:
        """Collect the settings; `setup` reads and renders the problems.

        Args:
            path: Training problems: a file, a folder, a hub id, `reasoning_gym:TASK`, or several of
                these; None generates them. `predict` answers these problems, in their order.
            val_path: Validation and test problems; None generates `val_size` others where training
                problems are generated, and sets as many of them aside where they are read.
            evaluation_sets: More such problems, by name (of `eval/NAME/*`); None generates them.
            problem_field: Where a row holds the problem (`prompt[0].content`); found out if None.
            answer_field: Where a row holds the answer; found out if None.
            drop_invalid: Leave rows without an integer answer in 0..999 out instead of refusing.
            split: Of a training data set with several splits.
            val_split: Of a validation data set.
            config: Configuration (subset) of a data set of the hub.
            generated: What generated problems look like.
            train_size: Number of training problems to generate (by us or by reasoning-gym).
            val_size: Number of validation problems to generate or to set aside; 0 is no validation.
            prompts_per_rollout: Prompts of a training batch, over all processes.
            val_batch_size: Prompts that a process evaluates at a time.
            max_prompt_length: Longest prompt, in tokens.
            on_long_prompt: Refuse longer ones, or leave them out with a warning.
            chat_template: "chat" (the tokenizer's), "plain" or "auto", see `render_prompt`.
            instruction: Added to each problem of a chat that does not speak of a box itself.
            system_prompt: System message of a chat.
            tokenizer: Folder, hub id or object; None takes the tokenizer of the model in training.
            seed: Of the generated problems, of the split and of the training order; None takes the
                run's (`seed_everything`).

        Raises:
            ValueError: A size is out of range, or a set's name not fit for a metric.
        """
        super().__init__()
        for name, size, least in (
            ("train_size", train_size, 1),
            ("val_size", val_size, 0),
            ("prompts_per_rollout", prompts_per_rollout, 1),
            ("val_batch_size", val_batch_size, 1),
            ("max_prompt_length", max_prompt_length, 1),
        ):
            require(size >= least, f"{name}: expected >= {least}, got {size}")
        self.paths, self.val_paths = _as_list(path), _as_list(val_path)
        self.evaluation_sets = _named_sets(evaluation_sets or {})
        self.fields = {"problem_field": problem_field, "answer_field": answer_field}
        self.split, self.val_split, self.config = split, val_split, config
        self.drop_invalid, self.generated = drop_invalid, generated
        self.train_size, self.val_size = train_size, val_size
        self.prompts_per_rollout, self.val_batch_size = prompts_per_rollout, val_batch_size
        self.max_prompt_length, self.on_long_prompt = max_prompt_length, on_long_prompt
        self.chat_template: Template = chat_template
        self.instruction, self.system_prompt = instruction, system_prompt
        self.tokenizer = tokenizer
        self.seed = int(os.environ.get("PL_GLOBAL_SEED", 0)) if seed is None else seed
        self._train = self._predict = PromptBatch([], [], [])
        self._val: list[PromptBatch] = []
        self._resumed: dict[str, int] = {}

    # Lightning's hooks ---------------------------------------------------------------------------

    @override
    def setup(self, stage: str) -> None:
        """Read and render what a stage ("fit", "validate", "test" or "predict") needs.

        Raises:
            ValueError: A source is unreadable, a prompt too long, or too little left to train on.
        """
        if stage == "fit" and self.trainer and begins_anew(self.trainer):
            self._resumed = {}
        if stage == "predict":
            problems = self._problems(self.paths, self.split, self.train_size, self.seed)
            self._predict = self._render(problems)
            return
        train, of_sets = self._split(with_train=stage == "fit")
        self._val = [self._render(val, name) for name, val in of_sets.items() if val]
        if stage == "fit":
            self._train = self._render(train)
            require(
                len(self._train) >= self.prompts_per_rollout,
                f"prompts_per_rollout: {self.prompts_per_rollout} is more than the "
                f"{len(self._train)} training problems; lower it or give more problems",
            )

    @override
    def train_dataloader(self) -> TrainLoader:
        """Return the batches of the current epoch that are still to be seen."""
        now = self.state_dict()
        for name, before in self._resumed.items():
            if before != now[name]:
                rank_zero_warn(
                    f"data: {name} was {before} in the checkpoint and is {now[name]}: "
                    "the order of training prompts is not the interrupted run's"
                )
        rank, world_size = self._place()
        return TrainLoader(
            self._train, self.prompts_per_rollout, self.seed, rank, world_size, self._position
        )

    @override
    def val_dataloader(self) -> list[EvalLoader]:
        """Return this process's share of each set of validation prompts, the held-out one first."""
        return [self._eval_loader(prompts) for prompts in self._val]

    @override
    def test_dataloader(self) -> list[EvalLoader]:
        """Return the same as `val_dataloader`."""
        return self.val_dataloader()

    @override
    def predict_dataloader(self) -> EvalLoader:
        """Return this process's share of the problems at `path`."""
        return self._eval_loader(self._predict)

    @override
    def state_dict(self) -> dict[str, int]:
        """Return what the order of training prompts depends on, to notice a change on resuming.

        The position in that order is not among it: Lightning's own progress holds it.
        """
        return {
            "seed": self.seed,
            "prompts_per_rollout": self.prompts_per_rollout,
            "train_problems": len(self._train),
        }

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Remember the interrupted run's state, see `state_dict`."""
        self._resumed = dict(state_dict)

    @property
    def longest_prompt(self) -> int:
        """Tokens of the longest prompt of this stage."""
        batches = (self._train, self._predict, *self._val)
        return max((len(ids) for batch in batches for ids in batch.prompt_ids), default=0)

    @property
    def largest_token(self) -> int:
        """Largest token id of the prompts of this stage, -1 without any."""
        batches = (self._train, self._predict, *self._val)
        return max((max(ids) for batch in batches for ids in batch.prompt_ids if ids), default=-1)

    # Problems ------------------------------------------------------------------------------------

    def _problems(self, paths: list[str], split: str | None, size: int, seed: int) -> list[Problem]:
        """Read the problems of all paths; without any, generate them."""
        if not paths:
            with waiting_for("Generating problems"):
                return generate_problems(size, self.generated, seed=seed)
        with waiting_for("Reading problems"):
            return self._read(paths, split, size, seed)

    def _read(self, paths: list[str], split: str | None, size: int, seed: int) -> list[Problem]:
        return [
            problem
            for path in paths
            for problem in load_problems(
                path,
                **self.fields,
                drop_invalid=self.drop_invalid,
                split=split,
                config=self.config,
                size=size,
                seed=seed,
            )
        ]

    def _split(self, *, with_train: bool) -> tuple[list[Problem], dict[str, list[Problem]]]:
        """Return training problems, without near-duplicates of the others, and validation sets."""
        # Generators get a seed far away (reasoning-gym's item i of seed s is item i - 1 of seed
        # s + 1), so validation problems depend neither on train_size nor on the stage.
        far = stream_seed(self.seed, "validation") % 2**31
        if self.val_paths or all(map(is_generator, self.paths)):
            of_val = (self.val_paths or self.paths, self.val_split, self.val_size, far)
            of_train = (self.paths, self.split, self.train_size, self.seed)
            val = self._problems(*of_val) if self.val_size else []
            train = self._problems(*of_train) if with_train else []
        else:
            pool = self._problems(self.paths, self.split, self.train_size, self.seed)
            val, train = self._set_aside(pool, with_train=with_train)
        of_sets = {HELD_OUT: val} | {
            name: self._problems(paths, self.val_split, self.val_size, far)
            for name, paths in self.evaluation_sets.items()
        }
        evaluated = [problem for problems in of_sets.values() for problem in problems]
        known = {fingerprint(problem.problem) for problem in evaluated}
        names = [fingerprint(problem.problem) for problem in train]
        kept = [problem for problem, name in zip(train, names, strict=True) if name not in known]
        if with_train:
            copies = len(kept) - len(set(names) - known)
            rank_zero_info(
                f"data: {len(kept)} training problems ({len(train) - len(kept)} near-duplicates of "
                f"validation problems left out), {len(evaluated)} validation problems"
                + (f"; {copies} of the training problems are copies of others" if copies else "")
            )
            require(
                bool(kept),
                f"val_path: all {len(train)} training problems are near-duplicates of validation "
                "problems; give others",
            )
        return kept, of_sets

    def _set_aside(
        self, pool: list[Problem], *, with_train: bool
    ) -> tuple[list[Problem], list[Problem]]:
        """Return the validation problems of a pool and the others.

        `validate` and `test` take the problems that `fit` sets aside, for it sees all the others.
        A pool too small for that (one year of AIME) can only be meant as a whole.
        """
        if not with_train and len(pool) <= self.val_size:
            return pool, []
        require(
            len(pool) > self.val_size,
            f"val_size: {self.val_size} of {len(pool)} problems leaves none to train on; lower it, "
            "or give --data.val_path",
        )
        if not with_train:
            rank_zero_info(
                f"data: {self.val_size} of {len(pool)} problems, those that `fit` sets aside; "
                "--data.val_path takes all of a file"
            )
        random.Random(f"{self.seed}/split").shuffle(pool)
        return pool[: self.val_size], pool[self.val_size :]

    def _render(self, problems: list[Problem], evaluation_set: str = "") -> PromptBatch:
        """Tokenise the prompts of problems and refuse or drop those that are too long."""
        tokenizer = self._tokenizer()
        chat = uses_chat(tokenizer, self.chat_template)
        texts = [
            render_prompt(
                problem.problem,
                tokenizer,
                chat_template=self.chat_template,
                instruction=self.instruction,
                system_prompt=self.system_prompt,
            )
            for problem in problems
        ]
        with waiting_for("Tokenising prompts"):
            # A chat template writes the special tokens itself.
            ids = tokenizer(texts, add_special_tokens=not chat).input_ids if texts else []
        rows = [row for row in range(len(texts)) if len(ids[row]) <= self.max_prompt_length]
        if len(rows) < len(texts):
            first = min(set(range(len(texts))).difference(rows))
            message = (
                f"{problems[first].source}: the prompt has {len(ids[first])} tokens, more than "
                f"max_prompt_length={self.max_prompt_length}"
            )
            require(
                self.on_long_prompt == "drop" and bool(rows),
                f"{message} (as {len(texts) - len(rows)} of {len(texts)} prompts); raise "
                "--data.max_prompt_length or leave them out with --data.on_long_prompt=drop",
            )
            rank_zero_warn(f"left out {len(texts) - len(rows)} long prompts; {message}")
        kept = [problems[row] for row in rows]
        return PromptBatch(kept, [ids[row] for row in rows], rows, evaluation_set)

    def _tokenizer(self) -> PreTrainedTokenizerBase:
        given = self.tokenizer
        name = given if isinstance(given, str) else "tokenizer"
        own = load_tokenizer(given) if isinstance(given, str) else given
        self.tokenizer = own
        module = self.trainer.lightning_module if self.trainer else None
        tokenizer = getattr(module, "tokenizer", None)
        if own is not None:
            if isinstance(tokenizer, PreTrainedTokenizerBase) and tokenizer is not own:
                check_same_tokens(tokenizer, own, f"--data.tokenizer {name}", "prompts")
            return own
        require(tokenizer is not None, "tokenizer: the model has none; give --data.tokenizer")
        assert isinstance(tokenizer, PreTrainedTokenizerBase)
        return tokenizer

    # Place and position --------------------------------------------------------------------------

    def _place(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _position(self) -> tuple[int, int]:
        """Return epoch and batches already seen of it, as Lightning counts and restores them."""
        if self.trainer is None:
            return 0, 0
        progress = self.trainer.fit_loop.epoch_loop.batch_progress
        return self.trainer.current_epoch, progress.current.ready

    def _eval_loader(self, prompts: PromptBatch) -> EvalLoader:
        # A trial has one batch of each: training as it will be, evaluation as short as can be.
        tried_out = self.trainer is not None and is_trial(self.trainer)
        size = min(self.val_batch_size, TRIAL_PROMPTS) if tried_out else self.val_batch_size
        return EvalLoader(prompts, size, *self._place())


def _named_sets(evaluation_sets: dict[str, Paths]) -> dict[str, list[str]]:
    """Check the names, which become parts of metrics' names."""
    for name in evaluation_sets:
        require(
            bool(re.fullmatch(r"[\w.-]+", name)) and name != HELD_OUT,
            "evaluation_sets: expected names of letters, digits, '_', '-' and '.', other than "
            f"{HELD_OUT}, got {name!r}",
        )
    return {name: _as_list(paths) for name, paths in evaluation_sets.items()}


def _as_list(paths: Paths) -> list[str]:
    return [paths] if isinstance(paths, str) else list(paths or [])


_FIGURE = re.compile(r"\[asy\].*?\[/asy\]", re.DOTALL)
_SENTENCE_END = re.compile(r"(?<=[.?!\n])")
_HOW_TO_ANSWER = re.compile(r"\\boxed|step by step|final answer|answer:", re.IGNORECASE)


def fingerprint(text: str) -> str:
    """Return what near-duplicates share: letters, digits and operators of the question itself.

    Case, spaces, punctuation, LaTeX's brackets, figures and sentences on how to answer go (a copy
    of a data set often brings them along); digits and + - * / ^ = < > stay, for with other ones it
    is another problem.
    """
    sentences = _SENTENCE_END.split(_FIGURE.sub("", text))
    question = (s for s in sentences if re.search("[0-9]", s) or not _HOW_TO_ANSWER.search(s))
    return _squash("".join(question)) or _squash(text)


def _squash(text: str) -> str:
    text = unicodedata.normalize("NFKC", text).casefold()
    return re.sub(r"[^\w+\-*/^=<>]|_", "", text)
