"""The collection's other modules: they make what VC-PPO starts from.

`ColdStartModule` fine-tunes a language model on worked solutions; `RewardModelModule` trains an
outcome reward model on the policy's own complete responses, from which the paper's PPO baseline
starts its critic. Both write ordinary Hugging Face folders.

Shapes: B sequences, L tokens of prompt + response, T response tokens, N masked response tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from transformers import PreTrainedModel
from typing_extensions import override

from lightning_vcppo import folders, forward, models
from lightning_vcppo.actor_module import ActorModule
from lightning_vcppo.grading import RewardFunction
from lightning_vcppo.health import UpdateHealth
from lightning_vcppo.microbatch import explained_variance
from lightning_vcppo.optimizers import build_optimizer, warmed_up_lr
from lightning_vcppo.problems import (
    FAMILIES,
    THINK_CLOSE,
    THINK_OPEN,
    ProblemSettings,
    generate_problems,
)
from lightning_vcppo.rollout import PromptBatch, Rollout, join_prompts, last_token
from lightning_vcppo.seeding import stream
from lightning_vcppo.settings import EngineSettings, OptimizerSettings, SamplingSettings
from lightning_vcppo.sharding import as_forward, full_scalar
from lightning_vcppo.tiny_tokenizer import train_tokenizer


class SupervisedModule(ActorModule):
    """What both share: one optimizer under Lightning's automatic optimization, and its clipping."""

    optimizer_settings: OptimizerSettings
    loss_is_finite = True

    def watch(self, network: str, settings: OptimizerSettings) -> None:
        """Say which network is trained, and how."""
        self.optimizer_settings = settings
        self.health = {network: UpdateHealth(settings.max_skipped_updates, "--model.optimizer")}

    def scheduled(self, network: nn.Module, factor: Callable[[int], float]) -> OptimizerLRScheduler:
        """Return the network's optimizer, and what the updates done make of its learning rate."""
        optimizer = build_optimizer(self.optimizer_settings, network.parameters())
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    @override
    def on_before_backward(self, loss: Tensor) -> None:
        """Look at the loss of each backward pass of an update."""
        self.loss_is_finite &= bool(loss.isfinite())

    @override
    def on_train_batch_end(self, outputs: Any, batch: PromptBatch, batch_idx: int) -> None:
        """Log what was left out."""
        (health,) = self.health.values()
        self.log("update/skipped", health.take_skipped(), batch_size=len(batch))
        super().on_train_batch_end(outputs, batch, batch_idx)

    @override
    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip to the module's own norm, or to the Trainer's where that flag is given.

        Without gradients the optimizer's step, which comes next, changes neither weights nor state.
        """
        norm = (
            self.optimizer_settings.max_grad_norm
            if gradient_clip_val is None
            else gradient_clip_val
        )
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        gradients = [p.grad for p in parameters if p.grad is not None]
        total = full_scalar(torch.nn.utils.get_total_norm(gradients))
        finite = self.loss_is_finite and math.isfinite(total)
        skip = self.max_over_ranks(int(not finite)) > 0
        (health,) = self.health.values()
        health.count(skip)
        self.loss_is_finite = True
        if skip:
            optimizer.zero_grad()
        elif gradient_clip_algorithm == "value":
            torch.nn.utils.clip_grad_value_(parameters, norm)
        elif norm:
            torch.nn.utils.clip_grad_norm_(parameters, norm)


class ColdStartModule(SupervisedModule):
    """Supervised fine-tuning of a causal language model on worked solutions."""

    def __init__(
        self,
        actor: str | dict[str, Any],
        tokenizer_vocab_size: int = 320,
        reward: str | RewardFunction = "lightning_vcppo.rewards.verify",
        evaluation: SamplingSettings = SamplingSettings(),
        engine: EngineSettings = EngineSettings(),
        optimizer: OptimizerSettings = OptimizerSettings(lr=1e-5),
    ) -> None:
        """Collect the settings; the model is loaded or built by `configure_model`.

        Args:
            actor: Folder or hub id of a causal language model, or a model config (`model_type`,
                ...) for random weights; such a model gets a small tokenizer trained on generated
                problems.
            tokenizer_vocab_size: Upper bound of that tokenizer's vocabulary.
            reward: As in `VCPPOModule`, for `validate`.
            evaluation: How responses are sampled in `validate`, `test` and `predict`.
            engine: What samples them.
            optimizer: Learning rate (cosine to 0 after the warm-up), clipping, optimizer.

        Raises:
            ValueError: if the tokenizer cannot be loaded.
        """
        if isinstance(actor, str):
            tokenizer = models.load_tokenizer(actor)
        else:
            tokenizer = default_tokenizer(tokenizer_vocab_size)
        super().__init__(actor, tokenizer, reward, evaluation, engine)
        self.watch("actor", optimizer)

    @override
    def training_step(self, batch: PromptBatch, batch_idx: int) -> Tensor:
        """Return the mean cross-entropy of the solutions' tokens."""
        assert self.actor is not None
        responses = [self._response_ids(batch, row) for row in range(len(batch))]
        mask_BT = _length_mask([len(ids) for ids in responses]).to(self.device)
        response_ids_BT = _right_pad(responses, self.tokenizer.pad_token_id).to(self.device)
        input_ids_BL = join_prompts(
            batch.prompt_ids, response_ids_BT, mask_BT, self.tokenizer.pad_token_id
        )
        prompt_lengths_B = torch.tensor([len(ids) for ids in batch.prompt_ids], device=self.device)
        logprobs_N, _ = forward.response_logprobs(
            self.actor, input_ids_BL, prompt_lengths_B, mask_BT, response_ids_BT[mask_BT]
        )
        loss = -logprobs_N.sum()
        # A token weighs the same on every rank, and strategies average over ranks.
        tokens = self.sum_over_ranks(mask_BT.sum())
        mean = self.sum_over_ranks(loss.detach().double()) / tokens
        lr = self.trainer.optimizers[0].param_groups[0]["lr"]
        metrics = {
            "cold_start/loss": mean.float(),
            "cold_start/perplexity": mean.exp().float(),
            "cold_start/lr": lr,
        }
        self.log_dict(metrics, batch_size=len(batch))
        return loss * self.trainer.world_size / tokens

    @override
    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return the optimizer with a linear warm-up and a cosine decay over the whole run."""
        assert self.actor is not None
        total = int(self.trainer.estimated_stepping_batches)
        warmup = max(self.optimizer_settings.warmup_updates, 1)

        def factor(update: int) -> float:
            rise = min(1.0, (update + 1) / warmup)
            return rise * 0.5 * (1 + math.cos(math.pi * min(update / total, 1.0)))

        return self.scheduled(self.actor, factor)

    def _response_ids(self, batch: PromptBatch, row: int) -> list[int]:
        problem = batch.problems[row]
        if problem.solution is None:
            raise ValueError(
                f"{problem.source}: no worked solution, and cold start learns from nothing else "
                "(give rows a `solution` field, or leave --data.path out for generated problems)"
            )
        text = problem.solution
        if THINK_CLOSE in text and not self.opened_thinking_tag(batch.prompt_ids[row]):
            text = f"{THINK_OPEN}\n{text}"
        ids: list[int] = self.tokenizer(text, add_special_tokens=False).input_ids
        return [*ids, self.tokenizer.eos_token_id]


class RewardModelModule(SupervisedModule):
    """An outcome reward model: regress the verifier's reward at the end of complete responses.

    The policy is frozen and samples its own training data. The score is read at the last token
    alone, so what a critic that starts from here says of prefixes is arbitrary, or low where
    unfinished responses have been scored low: the value-initialisation bias of VC-PPO, section 3.1.
    """

    def __init__(
        self,
        actor: str,
        reward: str | RewardFunction = "lightning_vcppo.rewards.verify",
        sampling: SamplingSettings = SamplingSettings(),
        evaluation: SamplingSettings = SamplingSettings(),
        engine: EngineSettings = EngineSettings(),
        optimizer: OptimizerSettings = OptimizerSettings(lr=1e-5),
        unfinished_score: float | None = None,
    ) -> None:
        """Collect the settings; the models are loaded by `configure_model`.

        Args:
            actor: Folder or hub id of the policy; the reward model starts from its weights.
            reward: As in `VCPPOModule`.
            sampling: How the training responses are sampled.
            evaluation: How responses are sampled in `validate`, `test` and `predict`.
            engine: What samples them.
            optimizer: Of the reward model.
            unfinished_score: What a response cut off at random is worth, each being shown once so,
                too; None leaves prefixes alone.
        """
        super().__init__(actor, models.load_tokenizer(actor), reward, evaluation, engine)
        self.sampling = sampling
        self.watch("reward_model", optimizer)
        self.unfinished_score = unfinished_score
        self.reward_model: PreTrainedModel | None = None

    @override
    def configure_model(self) -> None:
        """Load policy and reward model, once for all stages."""
        super().configure_model()
        assert self.actor is not None
        self.actor.requires_grad_(False)
        if self.reward_model is None:
            assert isinstance(self.actor_source, str)
            source = self.actor_source
            self.reward_model = self.build(lambda: models.load_reward_model(source))

    @override
    def training_settings(self) -> dict[str, SamplingSettings]:
        """Return how training samples, by flag."""
        return {"sampling": self.sampling}

    @override
    def training_step(self, batch: PromptBatch, batch_idx: int) -> Tensor:
        """Sample a rollout and return the squared error of the score at its last tokens."""
        assert self.reward_model is not None
        names = (self.run_seed, "reward-model", self.rollouts_done)
        rollout = self.sample(batch, self.sampling, *names)
        self.rollouts_done += 1
        # One token wider, shifted: the state *after* the last token, where the outcome is known.
        end_BT = torch.nn.functional.pad(last_token(rollout.response_mask_BT), (1, 0))
        score_B = self.read_scores(rollout, end_BT)
        loss = 0.5 * (score_B - rollout.scores_B).square().mean()
        if self.unfinished_score is not None:
            rows = len(rollout) * self.trainer.world_size
            share_R = torch.rand(rows, generator=stream(*names, "cut")).to(self.device)
            cut_B = (share_R[rollout.positions_B] * rollout.response_lengths_B).long()
            cut_BT = torch.nn.functional.one_hot(cut_B, end_BT.shape[1]).bool()
            unfinished_B = self.read_scores(rollout, cut_BT)
            loss = loss + 0.5 * (unfinished_B - self.unfinished_score).square().mean()
        everyone_B = torch.ones_like(rollout.finished_B)
        metrics = {
            "reward_model/loss": loss.detach(),
            "reward_model/explained_variance": explained_variance(
                score_B.detach(), rollout.scores_B, everyone_B, reduce=self.sum_over_ranks
            ),
        }
        self.log_dict(metrics, batch_size=len(batch), sync_dist=True)
        return loss

    def read_scores(self, rollout: Rollout, place_BT: Tensor) -> Tensor:
        """Return the score (B,) of the state before the one marked place of each response."""
        assert self.reward_model is not None
        model, score = self.reward_model, self.reward_model.score
        assert isinstance(score, nn.Module)

        def read() -> Tensor:
            hidden_BH = forward.response_hidden(
                model.base_model, rollout.input_ids_BL, rollout.prompt_lengths_B, place_BT
            )
            score_B1: Tensor = score(hidden_BH)
            return score_B1

        return as_forward(model, read)[:, 0].float()

    @override
    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return the reward model's optimizer with a linear warm-up."""
        assert self.reward_model is not None
        settings = self.optimizer_settings
        return self.scheduled(
            self.reward_model, lambda update: warmed_up_lr(settings, update) / settings.lr
        )

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Say what the reward model is, too."""
        super().on_save_checkpoint(checkpoint)
        assert self.reward_model is not None
        checkpoint["folders"]["reward_model"] = folders.describe(self.reward_model)

    @override
    def export(self, folder: Path) -> None:
        """Write `reward_model` as an ordinary Hugging Face folder."""
        assert self.reward_model is not None
        self.write(folder / "reward_model", self.reward_model)


def default_tokenizer(vocab_size: int) -> Any:
    """Train the tiny model's tokenizer on generated problems of all families."""
    settings = ProblemSettings(tuple(FAMILIES), max_steps=6, rough_rate=0.2, check_rate=0.2)
    problems = generate_problems(2000, settings, seed=0)
    return train_tokenizer(
        (f"{p.problem}\n{THINK_OPEN}\n{p.solution}" for p in problems), vocab_size
    )


def _length_mask(lengths: list[int]) -> Tensor:
    """Return (B, T), True on the first `length` places of each row."""
    return torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]


def _right_pad(rows: list[list[int]], pad: int) -> Tensor:
    """Return (B, T) token ids."""
    return torch.nn.utils.rnn.pad_sequence(
        [torch.tensor(ids) for ids in rows], batch_first=True, padding_value=pad
    )
