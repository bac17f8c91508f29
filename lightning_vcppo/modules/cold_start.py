"""Fine-tune a language model on worked solutions, as a start for VC-PPO.

The result is an ordinary Hugging Face directory.

Shapes: B sequences, L tokens of prompt + response, T response tokens, N masked response tokens.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from typing_extensions import override

from lightning_vcppo.data.problem import THINK_CLOSE, THINK_OPEN
from lightning_vcppo.data.prompts import PromptBatch
from lightning_vcppo.data.tiny_tokenizer import default_tokenizer
from lightning_vcppo.models import forward, loading
from lightning_vcppo.modules.supervised import SupervisedModule, _length_mask, _right_pad
from lightning_vcppo.rewards.functions import RewardFunction
from lightning_vcppo.rollouts.rollout import join_prompts
from lightning_vcppo.settings import EngineSettings, OptimizerSettings, SamplingSettings


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
            actor: Directory or hub id of a causal language model, or a model config (`model_type`,
                ...) for random weights; such a model gets a small tokenizer trained on generated
                problems.
            tokenizer_vocab_size: Upper bound of that tokenizer's vocabulary.
            reward: As in `VCPPOModule`, for `validate`.
            evaluation: How responses are sampled in `validate`, `test` and `predict`.
            engine: The engine that samples them.
            optimizer: Learning rate (cosine to 0 after the warm-up), clipping, optimizer.

        Raises:
            ValueError: If the tokenizer cannot be loaded.
        """
        if isinstance(actor, str):
            tokenizer = loading.load_tokenizer(actor)
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
                f"{problem.source}: no worked solution, which cold start trains on "
                "(give rows a `solution` field, or omit --data.path for generated problems)"
            )
        text = problem.solution
        if THINK_CLOSE in text and not self.sampler.opened_thinking_tag(batch.prompt_ids[row]):
            text = f"{THINK_OPEN}\n{text}"
        ids: list[int] = self.tokenizer(text, add_special_tokens=False).input_ids
        return [*ids, self.tokenizer.eos_token_id]
