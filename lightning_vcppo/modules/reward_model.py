"""Train an outcome reward model, from which the paper's PPO baseline starts its critic.

Shapes: B sequences, L tokens of prompt + response, T response tokens, N masked response tokens.
"""

from __future__ import annotations

from pathlib import Path

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from transformers import PreTrainedModel
from typing_extensions import override

from lightning_vcppo.algorithm.statistics import explained_variance
from lightning_vcppo.common.seeding import stream
from lightning_vcppo.data.prompts import PromptBatch
from lightning_vcppo.distributed.sharding import as_forward
from lightning_vcppo.models import forward, loading
from lightning_vcppo.models.critic import load_reward_model
from lightning_vcppo.modules.optimizers import warmed_up_lr
from lightning_vcppo.modules.supervised import SupervisedModule
from lightning_vcppo.rewards.functions import RewardFunction
from lightning_vcppo.rollouts.rollout import Rollout, last_token
from lightning_vcppo.settings import EngineSettings, OptimizerSettings, SamplingSettings


class RewardModelModule(SupervisedModule):
    """An outcome reward model: regress the verifier's reward at the end of complete responses.

    The policy is frozen and samples its own training data. The score is read at the last token
    only, so a critic that starts from it has arbitrary values on prefixes. VC-PPO, section 3.1,
    observes that they are low; `unfinished_score` is our way to reproduce that.
    """

    sampling: SamplingSettings

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
            actor: Directory or hub id of the policy; the reward model starts from its weights.
            reward: As in `VCPPOModule`.
            sampling: How the training responses are sampled.
            evaluation: How responses are sampled in `validate`, `test` and `predict`.
            engine: The engine that samples them.
            optimizer: Optimizer of the reward model.
            unfinished_score: Target for a response cut off at a random token; each response is then
                also trained on once in this form. None trains on complete responses only.
        """
        super().__init__(actor, loading.load_tokenizer(actor), reward, evaluation, engine)
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
            self.reward_model = self.build(lambda: load_reward_model(source))

    @override
    def training_step(self, batch: PromptBatch, batch_idx: int) -> Tensor:
        """Sample a rollout and return the squared error of the score at its last tokens."""
        assert self.reward_model is not None
        names = (self.run_seed, "reward-model", self.rollouts_done)
        rollout = self.sample(batch, self.sampling, *names)
        self.rollouts_done += 1
        # Shift by one token: the score is of the state *after* the last token.
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
        """Return the score (B,) of the state before the one marked position of each response."""
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
    def exported(self) -> dict[str, PreTrainedModel]:
        """Return `actor` and `reward_model`."""
        assert self.reward_model is not None
        return super().exported() | {"reward_model": self.reward_model}

    @override
    def export(self, directory: Path) -> None:
        """Write only `reward_model`, because the actor does not change."""
        self.write(directory / "reward_model", self.exported()["reward_model"])
