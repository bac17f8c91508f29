"""Define the module and the data of value pretraining on stored rollouts, without an actor.

An epoch is a pass over the responses to fit on; after each, the critic is judged on the held-out
responses.

Shapes: B responses, T response tokens.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from typing_extensions import override

from lightning_vcppo.algorithm.value_pretraining import Progress, StopRule
from lightning_vcppo.common.errors import require
from lightning_vcppo.common.seeding import stream
from lightning_vcppo.critic_lab.hints import Hints
from lightning_vcppo.critic_lab.measures import Measures, measure
from lightning_vcppo.critic_lab.store import TokenStore
from lightning_vcppo.distributed.collectives import Ranks, gather
from lightning_vcppo.distributed.fsdp2 import FSDP2Strategy, build
from lightning_vcppo.distributed.sharding import full_state_dict
from lightning_vcppo.distributed.strategies import prepare_strategy, refuse_strategy
from lightning_vcppo.models import loading
from lightning_vcppo.models.critic import Critic, load_critic
from lightning_vcppo.models.side_critic import SideCritic, build_side_critic
from lightning_vcppo.modules.objectives import CriticObjective
from lightning_vcppo.modules.optimizers import build_optimizer
from lightning_vcppo.modules.scoring import Scorer
from lightning_vcppo.modules.updates import (
    Backend,
    Learner,
    Updater,
    copy_state,
    restore_state,
    run_updates,
)
from lightning_vcppo.rollouts.rollout import Rollout
from lightning_vcppo.settings import OptimizerSettings, ValueSettings


class _Batches(Dataset[Rollout]):
    """This rank's part of each batch, in an order that depends on epoch and seed."""

    def __init__(
        self, store: TokenStore, hints: Hints, rows: list[int], size: int, seed: int | None
    ) -> None:
        self._store, self._hints = store, hints
        self._rows, self._size, self._seed = rows, size, seed
        self.begin(0, 0, 1)

    def begin(self, epoch: int, rank: int, ranks: int) -> None:
        """Put the responses in the order of an epoch."""
        self._rank, self._ranks = rank, ranks
        self._order = torch.arange(len(self._rows))
        if self._seed is not None:
            rng = stream(self._seed, "critic fit", epoch)
            self._order = torch.randperm(len(self._rows), generator=rng)

    def __len__(self) -> int:
        return -(-len(self._rows) // self._size)

    def __getitem__(self, index: int) -> Rollout:
        batch = self._order[index * self._size : (index + 1) * self._size]
        rows = [self._rows[i] for i in batch.tolist()]
        places = list(range(len(rows)))[self._rank :: self._ranks]
        mine = [rows[place] for place in places] or rows[:1]
        rollout = self._store.rollout(mine, places or [-1])  # position -1 has no weight
        return self._hints.view(rollout, mine)


class CriticData(L.LightningDataModule):
    """Stored rollouts, split by prompt."""

    def __init__(
        self,
        store: TokenStore,
        hints: Hints,
        held_out_share: float,
        mini_batch_size: int,
        seed: int,
    ) -> None:
        """Split the rollouts.

        Args:
            store: Store of the rollouts.
            hints: Hints that the critic reads before the prompts.
            held_out_share: Share of the prompts on which the critic is judged.
            mini_batch_size: Responses of an update, over all ranks.
            seed: Seed of split and order.
        """
        super().__init__()
        to_fit, self.held_out = store.split(held_out_share, seed)
        self.store = store
        self._training = _Batches(store, hints, to_fit, mini_batch_size, seed)
        self._validation = _Batches(store, hints, self.held_out, mini_batch_size, None)

    @override
    def train_dataloader(self) -> DataLoader[Rollout]:
        """Return the mini-batches of the next epoch."""
        return self._loader(self._training)

    @override
    def val_dataloader(self) -> DataLoader[Rollout]:
        """Return the held-out responses."""
        return self._loader(self._validation)

    def _loader(self, batches: _Batches) -> DataLoader[Rollout]:
        if (trainer := self.trainer) is not None:
            batches.begin(trainer.current_epoch, trainer.global_rank, trainer.world_size)
        return DataLoader(batches, batch_size=None)

    @override
    def transfer_batch_to_device(
        self, batch: Rollout, device: torch.device, dataloader_idx: int
    ) -> Rollout:
        """Move a rollout."""
        return batch.to(device)


class CriticFit(L.LightningModule):
    """A critic that is fitted on Monte-Carlo returns, with the updates of `VCPPOModule`.

    Attributes:
        measures: Measures on the held-out responses, after the last epoch.
        progress: State of the stop rule, in epochs.
    """

    def __init__(
        self,
        model: str,
        data: CriticData,
        value: ValueSettings,
        optimizer: OptimizerSettings,
        stop_rule: StopRule,
        *,
        max_tokens: int,
        seed: int,
        actor: str | None = None,
    ) -> None:
        """Collect the settings; `configure_model` loads the critic.

        Args:
            model: Directory or hub id of the backbone: a language model, reward model or critic.
            data: Data of the fit.
            value: The head and its loss.
            optimizer: Optimizer of the critic.
            stop_rule: Stop rule, in epochs; it uses R^2 on held-out responses.
            max_tokens: Largest number of tokens of a micro-batch.
            seed: Seed of the order of responses, and of the weights of a side critic.
            actor: Directory or hub id of the model that a side critic reads.
        """
        super().__init__()
        self.automatic_optimization = False
        self.actor_source = actor
        self.model_source, self.value, self.seed = model, value, seed
        self.data, self.stop_rule, self.max_tokens = data, stop_rule, max_tokens
        self.critic: Critic | SideCritic | None = None
        self.updater = Updater("critic", optimizer, passes=1, mini_batch_size=2**31)
        self.progress = Progress()
        self.measures: Measures | None = None
        self._best: dict[str, Any] = {}
        self._judged: list[tuple[list[np.ndarray], list[float], list[int], list[int]]] = []

    @override
    def setup(self, stage: str) -> None:
        """Refuse a strategy that cannot work."""
        refuse_strategy(self.trainer.strategy)
        require(
            self.actor_source is None or not isinstance(self.trainer.strategy, FSDP2Strategy),
            "strategy: a side critic needs the complete actor in each process; use ddp",
        )
        prepare_strategy(self.trainer.strategy, lambda: None)

    @override
    def configure_model(self) -> None:
        """Load the critic, once."""
        if self.critic is not None:
            return
        self.critic = build(self._load, self.trainer.strategy)
        loading.disable_dropout(self.critic.train())
        self.scorer = Scorer(
            self.critic.reader, self.critic, None, temperature=1.0, max_tokens=self.max_tokens
        )
        self.objective = CriticObjective(self.value, self.critic, self.scorer.critic_outputs)

    def _load(self) -> Critic | SideCritic:
        if self.actor_source is not None:
            actor = loading.load_actor(self.actor_source).requires_grad_(False)
            loading.disable_dropout(actor.train())
            return build_side_critic(actor, self.value, self.seed)
        network = load_critic(self.model_source, self.value)
        if not isinstance(network, Critic):
            raise ValueError(
                f"{self.model_source}: a side critic, which reads the activations of an actor; "
                "expected a language model, a reward model or a critic with its own backbone"
            )
        return network

    def _place_actor(self) -> None:
        """Move the actor of a side critic, which is not a submodule."""
        if isinstance(self.critic, SideCritic):
            self.critic.reader.to(self.device)  # type: ignore[arg-type]

    @override
    def on_fit_start(self) -> None:
        """Move the actor to the device of the critic."""
        self._place_actor()

    @override
    def on_validation_start(self) -> None:
        """Move the actor to the device of the critic."""
        self._place_actor()

    @override
    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the critic's optimizer."""
        assert self.critic is not None
        return build_optimizer(self.updater.settings, self.critic.parameters())

    @override
    def training_step(self, batch: Rollout, batch_idx: int) -> None:
        """Do one update."""
        metrics = run_updates(
            [Learner(self.updater, self.objective, self.optimizers())],
            batch,
            self.scorer,
            Backend.of(self, self.ranks),
            seed=(self.seed, self.updater.updates_done),
        )
        self.log_dict(metrics, batch_size=len(batch))

    @override
    def validation_step(self, batch: Rollout, batch_idx: int) -> None:
        """Read the values of held-out responses."""
        (values_BT,) = self.scorer.in_micro_batches(self.scorer.critic_values, batch, self.ranks)
        counted = (batch.positions_B >= 0).nonzero()[:, 0].tolist()
        self._judged.append(
            (
                [values_BT[i][batch.response_mask_BT[i]].float().cpu().numpy() for i in counted],
                batch.scores_B[counted].tolist(),
                batch.group_ids_B[counted].tolist(),
                (batch.positions_B[counted] + (batch_idx << 32)).tolist(),
            )
        )

    @override
    def on_validation_epoch_end(self) -> None:
        """Measure the critic, keep it if it is the best, and stop if it no longer improves."""
        judged, self._judged = self._judged, []
        if self.trainer.sanity_checking:
            return
        rows = [
            row
            for rank in gather(judged)
            for values, rewards, groups, places in rank
            for row in zip(places, values, rewards, groups, strict=True)
        ]
        rows.sort(key=lambda row: row[0])
        _, values, rewards, groups = zip(*rows, strict=True)
        self.measures = measure(values, rewards, groups, self.data.store.reward_range)
        r2 = self.trainer.strategy.broadcast(self.measures.r2)  # machines may round differently
        self.log_dict(
            {
                "critic/r2": r2,
                "critic/explained_variance": self.measures.explained_variance,
                "critic/bias": self.measures.bias,
            },
            batch_size=1,
        )
        if not self.trainer.training and self.trainer.state.fn != "fit":
            return
        rank_zero_info(f"Pass {self.trainer.current_epoch + 1}: held-out R^2 {r2:.3f}")
        if self.stop_rule.advance(self.progress, r2):
            assert self.critic is not None
            self._best = copy_state(self.critic, self.optimizers())
        if self.stop_rule.is_over(self.progress):
            self.trainer.should_stop = True

    @override
    def on_fit_end(self) -> None:
        """Restore the best critic."""
        if self._best:
            assert self.critic is not None
            restore_state(self.critic, self.optimizers(), self._best)
        rank_zero_info(
            f"Ended after pass {self.progress.rollouts}; the best critic is that after pass "
            f"{self.progress.best_rollout}, with a held-out R^2 of {self.progress.best:.3f}"
        )

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save progress and the best critic."""
        checkpoint["critic_fit"] = {
            "progress": asdict(self.progress),
            "best": self._best,
            "updates_done": self.updater.updates_done,
        }

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the state that `on_save_checkpoint` saves."""
        saved = checkpoint["critic_fit"]
        self.progress, self._best = Progress(**saved["progress"]), saved["best"]
        self.updater.updates_done = saved["updates_done"]

    def weights(self) -> dict[str, Tensor]:
        """Return the critic's complete weights; call it on every rank."""
        assert self.critic is not None
        return full_state_dict(self.critic.model)

    @property
    def ranks(self) -> Ranks:
        """The ranks of this run."""
        return Ranks.of(self)
