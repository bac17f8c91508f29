"""Provide prompts and answers for training and evaluation: `AIMEDataModule`.

It reads problems (`sources.py`) or generates them (`generator.py`), removes near-duplicates of
evaluated problems from training (`splits.py`), renders prompts for the trained model
(`prompts.py`), and distributes them to the processes (`loaders.py`).
"""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import date
from functools import partial
from math import inf
from typing import Any, Literal

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from transformers import PreTrainedTokenizerBase
from typing_extensions import override

from lightning_vcppo.common.errors import require
from lightning_vcppo.common.files import is_trial
from lightning_vcppo.common.fresh_start import is_new_run
from lightning_vcppo.common.lists import as_list
from lightning_vcppo.common.seeding import stream_seed
from lightning_vcppo.common.terminal import waiting_for
from lightning_vcppo.data import sizes
from lightning_vcppo.data.answers import ReadKind
from lightning_vcppo.data.generator import ProblemSettings, generate_problems
from lightning_vcppo.data.loaders import EvalLoader, TrainLoader
from lightning_vcppo.data.problem import Problem
from lightning_vcppo.data.prompts import (
    HELD_OUT,
    INSTRUCTION,
    Clock,
    PromptBatch,
    PromptFormat,
    as_date,
    render_prompt,
    warn_of_unread_forms,
)
from lightning_vcppo.data.sets import NamedSets, Paths, ProblemSet, named_sets
from lightning_vcppo.data.sources import is_generator, load_problems
from lightning_vcppo.data.splits import copies_among, set_aside, without_duplicates_of
from lightning_vcppo.models.checks import check_same_tokens
from lightning_vcppo.models.loading import load_tokenizer
from lightning_vcppo.rewards.functions import Grader
from lightning_vcppo.rewards.signatures import Reads
from lightning_vcppo.rewards.verifier import Style

__all__ = ["INSTRUCTION", "AIMEDataModule", "load_problems", "render_prompt"]


class AIMEDataModule(pl.LightningDataModule):
    """Problems of AIME or other mathematics, read or generated, as tokenized prompts."""

    def __init__(
        self,
        path: Paths = None,
        val_path: Paths = None,
        evaluation_sets: NamedSets = None,
        answer_kind: ReadKind = "auto",
        problem_field: str | None = None,
        answer_field: str | None = None,
        drop_invalid: bool = False,
        split: str | None = None,
        val_split: str | None = None,
        config: str | None = None,
        generated: ProblemSettings = ProblemSettings(),
        train_size: int = 1000,
        val_size: int | None = None,
        prompts_per_rollout: int | None = None,
        val_batch_size: int = 64,
        max_prompt_length: int = 2048,
        on_long_prompt: Literal["error", "drop"] = "error",
        chat_template: str = "auto",
        instruction: str | None = None,
        system_prompt: str | None = None,
        prompt_date: str | None = None,
        tokenizer: str | PreTrainedTokenizerBase | None = None,
        seed: int | None = None,
    ) -> None:
        """Collect the settings; `setup` reads and renders the problems.

        Args:
            path: Training problems: a source or several, see `addresses.py`; None generates them.
                `predict` answers these problems, in their order.
            val_path: Validation and test problems; None generates or sets aside `val_size` of them.
            evaluation_sets: More validation problems, by name (of `eval/NAME/*`): a path, or {path,
                answer_kind, problem_field, answer_field, split}; None generates them.
            answer_kind: Kind of answers, see `answers.py`; "auto" chooses it.
            problem_field: Field of a row with the problem (`prompt[0].content`); None finds it.
            answer_field: Field of a row with the answer; None finds it.
            drop_invalid: Skip rows without a valid problem or answer instead of refusing them.
            split: Split of a training data set with several splits.
            val_split: Split of a validation data set.
            config: Configuration (subset) of a data set of the hub.
            generated: Settings of generated problems.
            train_size: Number of training problems to generate (by us or by reasoning-gym).
            val_size: Validation problems to generate or set aside; None: 64, at most a tenth.
            prompts_per_rollout: Prompts of a training batch, over all processes; None: 64 or all.
            val_batch_size: Number of prompts that a process evaluates at a time.
            max_prompt_length: Longest prompt, in tokens.
            on_long_prompt: Refuse longer prompts, or skip them with a warning.
            chat_template: "chat" (the tokenizer's), "plain", "auto" or a name, see `render_prompt`.
            instruction: How to answer; None takes that of the reward's style, in a chat only.
            system_prompt: System message where the row has none.
            prompt_date: YYYY-MM-DD for chat templates; None means the day of the run's first start.
            tokenizer: Directory, hub id or object; None takes the tokenizer of the trained model.
            seed: Seed of generated problems, of the split and of the training order; None takes the
                run's (`seed_everything`).

        Raises:
            ValueError: If a size, a date, a text or the name or a field of a set is invalid.
        """
        super().__init__()
        shared = {"problem_field": problem_field, "answer_field": answer_field}
        self.train_set = ProblemSet(as_list(path), answer_kind, split=split, **shared)
        self.val_set = ProblemSet(as_list(val_path), answer_kind, split=val_split, **shared)
        self.evaluation_sets = named_sets(evaluation_sets, split=val_split, **shared)
        self.drop_invalid, self.generated, self.train_size = drop_invalid, generated, train_size
        self._given = (val_size, prompts_per_rollout)
        self.val_size, self.prompts_per_rollout = sizes.or_defaults(*self._given)
        self.val_batch_size, self.max_prompt_length = val_batch_size, max_prompt_length
        self.format = PromptFormat(chat_template, instruction, system_prompt)
        self.prompt_date = as_date(prompt_date)
        self.tokenizer, self.config, self.on_long_prompt = tokenizer, config, on_long_prompt
        self.seed = int(os.environ.get("PL_GLOBAL_SEED", 0)) if seed is None else seed
        self._train = self._predict = PromptBatch([], [], [])
        self._val: list[PromptBatch] = []
        self._clock = Clock(self.prompt_date)
        self._resumed: dict[str, int] = {}
        for name, least in sizes.LEAST.items():
            size = getattr(self, name)
            require(size >= least, f"{name}: expected >= {least}, got {size}")

    # Lightning's hooks ---------------------------------------------------------------------------

    @override
    def setup(self, stage: str) -> None:
        """Read and render the problems of a stage ("fit", "validate", "test" or "predict").

        Raises:
            ValueError: If a source is unreadable, a prompt too long, or there are too few problems.
        """
        if stage == "fit" and self.trainer and is_new_run(self.trainer):
            self._resumed = {}
        # Ranks that start around midnight must have the same date.
        today = date.today().isoformat()
        start = self.trainer.strategy.broadcast(today) if self.trainer else today
        self._clock = Clock(self.prompt_date or as_date(start))
        if stage == "predict":
            self._predict = self._render(self._problems(self.train_set, self.train_size, self.seed))
            return
        train, of_sets = self._split(with_train=stage == "fit")
        self._val = [self._render(val, name) for name, val in of_sets.items() if val]
        if stage == "fit":
            self._train = self._render(train)
            if self._given[1] is None:
                self.prompts_per_rollout = sizes.rollout_size(len(self._train), self._place()[1])
            require(
                len(self._train) >= self.prompts_per_rollout,
                f"prompts_per_rollout: {self.prompts_per_rollout} is more than the "
                f"{len(self._train)} training problems; lower it or add problems",
            )

    @override
    def train_dataloader(self) -> TrainLoader:
        """Return the remaining batches of the current epoch."""
        now = self.state_dict()
        for name, before in self._resumed.items():
            if before != now[name]:
                rank_zero_warn(
                    f"data: {name} was {before} in the checkpoint and is {now[name]}: "
                    "the order of training prompts differs from the interrupted run's"
                )
        rank, world_size = self._place()
        place = (rank, world_size, self._position, self._extent)
        return TrainLoader(self._train, self.prompts_per_rollout, self.seed, *place)

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
    def state_dict(self) -> dict[str, Any]:
        """Return the inputs of the order of training prompts, to detect a change when resuming.

        The position in that order is not included, because Lightning's progress has it. The date is
        included if a chat template uses it.
        """
        of_clock = {"prompt_date": self._clock.date.isoformat()} if self._clock.was_read else {}
        return of_clock | {
            "seed": self.seed,
            "prompts_per_rollout": self.prompts_per_rollout,
            "train_problems": len(self._train),
        }

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the interrupted run's state, see `state_dict`, and restore its date."""
        state = dict(state_dict)
        start = as_date(state.pop("prompt_date", None))
        self._resumed = state
        if start and start != self._clock.date and self.prompt_date is None:
            self._clock = Clock(start)
            for batch in (self._train, self._predict, *self._val):
                batch.prompt_ids = self._tokenize(batch.problems)
            rank_zero_info(f"data: prompts have the date of the run's first start, {start}")

    @property
    def longest_prompt(self) -> int:
        """Number of tokens of the longest prompt of this stage."""
        batches = (self._train, self._predict, *self._val)
        return max((len(ids) for batch in batches for ids in batch.prompt_ids), default=0)

    @property
    def largest_token(self) -> int:
        """Largest token id of the prompts of this stage, -1 without any."""
        batches = (self._train, self._predict, *self._val)
        return max((max(ids) for batch in batches for ids in batch.prompt_ids if ids), default=-1)

    # Problems ------------------------------------------------------------------------------------

    def _problems(self, given: ProblemSet, size: int, seed: int) -> list[Problem]:
        """Read the problems of a set; generate them if it has no path."""
        if not given.paths:
            with waiting_for("Generating problems"):
                self._reads().check([], "generated problems")
                return generate_problems(size, self.generated, seed=seed)
        read = partial(
            load_problems,
            answer_kind=given.answer_kind,
            problem_field=given.problem_field,
            answer_field=given.answer_field,
            drop_invalid=self.drop_invalid,
            split=given.split,
            config=self.config,
            size=size,
            seed=seed,
            reads=self._reads(),
        )
        with waiting_for("Reading problems"):
            return [problem for path in given.paths for problem in read(path)]

    def _split(self, *, with_train: bool) -> tuple[list[Problem], dict[str, list[Problem]]]:
        """Return training problems, without near-duplicates of the others, and validation sets."""
        # Validation problems get a distant seed (reasoning-gym's item i of seed s is item i - 1 of
        # seed s + 1), so they depend neither on train_size nor on the stage.
        far = stream_seed(self.seed, "validation") % 2**31
        if self.val_set.paths or all(map(is_generator, self.train_set.paths)):
            of_val = self.val_set if self.val_set.paths else self.train_set
            if not self.val_set.paths:
                of_val = replace(of_val, split=self.val_set.split)
            val = self._problems(of_val, self.val_size, far) if self.val_size else []
            train = self._problems(self.train_set, self.train_size, self.seed) if with_train else []
        else:
            pool = self._problems(self.train_set, self.train_size, self.seed)
            val, train = self._set_aside(pool, with_train=with_train)
        of_sets = {HELD_OUT: val} | {
            name: self._problems(given, self.val_size, far)
            for name, given in self.evaluation_sets.items()
        }
        for name, problems in of_sets.items():
            if copies := copies_among(problems):
                rank_zero_info(
                    f"data: {copies} of the {len(problems)} problems of {name} are duplicates; "
                    "--model.evaluation.num_generations samples a problem several times"
                )
        if not with_train:
            return [], of_sets
        evaluated = [problem for problems in of_sets.values() for problem in problems]
        kept, copies = without_duplicates_of(evaluated, train)
        among = f", {copies} of them duplicates" if copies else ""
        rank_zero_info(
            f"data: {len(kept)} training problems{among} ({len(train) - len(kept)} near-duplicates "
            f"of validation problems removed), {len(evaluated)} validation problems"
        )
        require(
            bool(kept),
            f"val_path: all {len(train)} training problems are near-duplicates of validation "
            "problems; use others",
        )
        return kept, of_sets

    def _set_aside(
        self, pool: list[Problem], *, with_train: bool
    ) -> tuple[list[Problem], list[Problem]]:
        """Return the validation problems of a pool and the others.

        `validate` and `test` use the problems that `fit` sets aside, as it trains on the others.
        A pool too small for that (one year of AIME) is used completely.
        """
        if not with_train and len(pool) <= self.val_size:
            if self._given[0] is None:
                sizes.note_complete_use(len(pool))
            return pool, []
        size = sizes.held_out_size(len(pool)) if self._given[0] is None else self.val_size
        val, train = set_aside(pool, size, self.seed)
        if not with_train:
            rank_zero_info(
                f"data: {size} of {len(pool)} problems, those that `fit` sets aside; "
                "--data.val_path uses all problems of a file"
            )
        return val, train

    # Prompts -------------------------------------------------------------------------------------

    def _render(self, problems: list[Problem], evaluation_set: str = "") -> PromptBatch:
        """Tokenize the prompts of problems and refuse or skip those that are too long."""
        warn_of_unread_forms(problems, self._style(), evaluation_set)
        ids = self._tokenize(problems)
        rows = [row for row in range(len(ids)) if len(ids[row]) <= self.max_prompt_length]
        if len(rows) < len(ids):
            first = min(set(range(len(ids))).difference(rows))
            message = (
                f"{problems[first].source}: the prompt has {len(ids[first])} tokens, more than "
                f"max_prompt_length={self.max_prompt_length}"
            )
            require(
                self.on_long_prompt == "drop" and bool(rows),
                f"{message} (as {len(ids) - len(rows)} of {len(ids)} prompts); raise "
                "--data.max_prompt_length or skip them with --data.on_long_prompt=drop",
            )
            rank_zero_warn(f"skipped {len(ids) - len(rows)} long prompts; {message}")
        kept = [problems[row] for row in rows]
        return PromptBatch(kept, [ids[row] for row in rows], rows, evaluation_set)

    def _tokenize(self, problems: list[Problem]) -> list[list[int]]:
        with waiting_for("Tokenizing prompts"):
            return self.format.token_ids(problems, self._tokenizer(), self._style(), self._clock)

    def _grader(self) -> Grader | None:
        """Return the grader of the trained model's responses, if any."""
        module = self.trainer.lightning_module if self.trainer else None
        grader = getattr(module, "grader", None)
        return grader if isinstance(grader, Grader) else None

    def _style(self) -> Style | None:
        return grader.style if (grader := self._grader()) else None

    def _reads(self) -> Reads:
        return grader.reads if (grader := self._grader()) else Reads()

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
        require(tokenizer is not None, "tokenizer: the model has none; set --data.tokenizer")
        assert isinstance(tokenizer, PreTrainedTokenizerBase)
        return tokenizer

    # Place and position --------------------------------------------------------------------------

    def _place(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _position(self) -> tuple[int, int]:
        """Return the epoch and its finished batches, as Lightning counts and restores them."""
        if self.trainer is None:
            return 0, 0
        progress = self.trainer.fit_loop.epoch_loop.batch_progress
        return self.trainer.current_epoch, progress.current.ready

    def _extent(self) -> tuple[float, float]:
        """Return after how many batches an epoch ends, and after how many epochs the run."""
        if self.trainer is None:
            return inf, inf
        epochs = self.trainer.max_epochs
        return self.trainer.num_training_batches, inf if epochs in (None, -1) else epochs

    def _eval_loader(self, prompts: PromptBatch) -> EvalLoader:
        # A trial has one batch of each: of full size in training, and small in evaluation.
        tried_out = self.trainer is not None and is_trial(self.trainer)
        size = min(self.val_batch_size, sizes.TRIAL_PROMPTS) if tried_out else self.val_batch_size
        return EvalLoader(prompts, size, *self._place())
