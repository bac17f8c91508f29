"""Two networks and their updates: the machinery under the algorithm of `module.py`."""

from __future__ import annotations

import math
import time
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from typing import Any, Literal

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn
from typing_extensions import override

from lightning_vcppo.common import places
from lightning_vcppo.common.files import is_trial
from lightning_vcppo.common.seeding import stream
from lightning_vcppo.distributed.sharding import full_scalar, load_whole_or_sharded
from lightning_vcppo.distributed.standstill import in_place
from lightning_vcppo.distributed.strategies import sum_gradients_once
from lightning_vcppo.models import lora as adapters
from lightning_vcppo.modules.networks import NetworksModule
from lightning_vcppo.modules.optimizers import build_optimizer, warmed_up_lr
from lightning_vcppo.modules.update_health import UpdateHealth
from lightning_vcppo.rollouts.rollout import Rollout
from lightning_vcppo.rollouts.store import RolloutStore
from lightning_vcppo.settings import OptimizerSettings

Network = Literal["policy", "critic"]


class Phase(str, Enum):
    """What a rollout is used for."""

    VALUE_PRETRAINING = "value_pretraining"
    POLICY_OPTIMIZATION = "policy_optimization"


class ActorCriticModule(NetworksModule):
    """Actor and critic, and how they are updated.

    A subclass says what a rollout is and what the losses are.
    """

    def __init__(
        self,
        *,
        actor_optimizer: OptimizerSettings,
        critic_optimizer: OptimizerSettings,
        **networks: Any,
    ) -> None:
        """Collect the settings, see `VCPPOModule`; those of the networks are `NetworksModule`'s."""
        super().__init__(**networks)
        self.automatic_optimization = False
        self.optimizer_settings: dict[Network, OptimizerSettings] = {
            "policy": actor_optimizer,
            "critic": critic_optimizer,
        }
        self.health = {
            "policy": UpdateHealth(actor_optimizer.max_skipped_updates, "--model.actor_optimizer"),
            "critic": UpdateHealth(
                critic_optimizer.max_skipped_updates, "--model.critic_optimizer"
            ),
        }
        self.phase = Phase.POLICY_OPTIMIZATION
        self.rollout_store: RolloutStore | None = None  # the callback's, for value pretraining
        self.saved_rollout: Rollout | None = None  # to be taken there instead of sampling one
        self.updates_done: dict[Network, int] = {"policy": 0, "critic": 0}
        self.update_metrics: dict[str, float] = {}
        self.seconds: dict[str, float] = {}

    @abstractmethod
    def policy_loss(self, rollout: Rollout) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the actor's loss, a weighted sum over tokens, and its diagnostics."""

    @abstractmethod
    def critic_loss(self, rollout: Rollout) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the critic's loss, a weighted sum over tokens, and its diagnostics."""

    @abstractmethod
    def loss_metrics(self, network: Network) -> tuple[str, ...]:
        """Return the names of a loss's diagnostics; they depend on the settings alone.

        Ranks sum the diagnostics in this order, so no rank's data may add or drop one.
        """

    @abstractmethod
    def weigh_tokens(self, network: Network, mini_batch: Rollout) -> Rollout:
        """Fix each token's weight in the loss of a mini-batch, before it is cut any further."""

    # Lightning's hooks ---------------------------------------------------------------------------

    @override
    def on_fit_start(self) -> None:
        """Let a trial do as many rollouts as asked for: Lightning would count optimizer steps."""
        super().on_fit_start()
        if is_trial(self.trainer):
            self.trainer.fit_loop.epoch_loop.max_steps = -1

    @override
    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """Return one optimizer for the actor and, if there is one, one for the critic."""
        adapters.keep_precise(self, self.restored)
        networks: dict[Network, nn.Module | None] = {"policy": self.actor, "critic": self.critic}
        return [
            build_optimizer(self.optimizer_settings[name], network.parameters())
            for name, network in networks.items()
            if network is not None
        ]

    @override
    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Forget what the last rollout has logged.

        Lightning would log a key's last value again until the epoch ends, and a resumed run, which
        has not seen it, would not.
        """
        self.trainer.fit_loop.epoch_loop._results.reset()

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save phase and counters."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["phase"] = self.phase.value
        checkpoint["updates_done"] = dict(self.updates_done)

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore phase and counters."""
        super().on_load_checkpoint(checkpoint)
        self.phase = Phase(checkpoint["phase"])
        self.updates_done = dict(checkpoint["updates_done"])

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Add the time that the body takes to `seconds` of that part of a rollout."""
        start = time.perf_counter()
        yield
        self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - start

    # Updating them -------------------------------------------------------------------------------

    def update_network(
        self, network: Network, rollout: Rollout, epochs: Sequence[int] | None = None
    ) -> None:
        """Update actor or critic: epochs x mini-batches x micro-batches.

        Targets are fixed before the first update and the networks share nothing, so it makes no
        difference that one network's updates follow the other's instead of alternating with them.

        Args:
            network: Which one.
            rollout: What to learn from.
            epochs: Numbers of the passes, each with its own order; None takes the settings' count.
        """
        history: list[dict[str, float]] = []
        with in_place(f"update of the {network}"):
            for mini_batch in self._mini_batches(network, rollout, epochs):
                weighed = self.weigh_tokens(network, mini_batch)
                history.append(self._update(network, list(self._micro_batches(weighed, rollout))))
        # What was left out would make the means of all others NaN, so it counts only if it is all.
        made = [u for u in history if math.isfinite(u["loss"]) and math.isfinite(u["grad_norm"])]
        history = made or history
        for key in history[0]:
            mean = sum(update[key] for update in history) / len(history)
            self.update_metrics[f"{network}/{key}"] = mean
        key, skipped = f"update/skipped_{network}", self.health[network].take_skipped()
        self.update_metrics[key] = self.update_metrics.get(key, 0.0) + skipped

    def _update(self, network: Network, pieces: Sequence[Rollout]) -> dict[str, float]:
        """Take the gradient of a mini-batch, piece by piece, and step."""
        optimizer = self._optimizer(network)
        loss_function = self.policy_loss if network == "policy" else self.critic_loss
        nothing = torch.zeros((), device=self.device)
        totals = dict.fromkeys(("loss", *self.loss_metrics(network)), nothing)
        optimizer.zero_grad()
        for left, micro_batch in zip(range(len(pieces) - 1, -1, -1), pieces, strict=True):
            with sum_gradients_once(self.trainer.strategy, is_last=left == 0):
                loss, parts = loss_function(micro_batch)
                # Strategies average over ranks; a mini-batch's loss is the ranks' sum.
                self.manual_backward(loss * self.trainer.world_size)
            parts = {"loss": loss.detach(), **parts}
            assert parts.keys() == totals.keys(), "every rank sums what `loss_metrics` names"
            totals = {key: total + parts[key] for key, total in totals.items()}
            places.move_on()
        return self._step(network, optimizer, totals)

    def _step(
        self, network: Network, optimizer: Any, totals: dict[str, Tensor]
    ) -> dict[str, float]:
        """Clip, step and count.

        If loss or gradient is not finite on any rank, all leave weights and optimizer alone.
        """
        settings = self.optimizer_settings[network]
        lr = warmed_up_lr(settings, self.updates_done[network])
        parameters = []
        for group in optimizer.param_groups:
            group["lr"] = lr
            parameters += group["params"]
        grad_norm = full_scalar(
            torch.nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm or math.inf)
        )
        broken = not (math.isfinite(grad_norm) and math.isfinite(float(totals["loss"])))
        sums = torch.stack([*totals.values(), totals["loss"].new_tensor(float(broken))])
        *summed, broken_ranks = self.sum_over_ranks(sums).tolist()
        if not broken_ranks:
            optimizer.step()
            self.updates_done[network] += 1
        optimizer.zero_grad()
        self.health[network].count(skipped=broken_ranks > 0)
        return dict(zip(totals, summed, strict=True)) | {"grad_norm": grad_norm, "lr": lr}

    def _optimizer(self, network: Network) -> Any:
        optimizers = self.optimizers()
        if not isinstance(optimizers, list):
            return optimizers
        return optimizers[0 if network == "policy" else 1]

    def _mini_batches(
        self, network: Network, rollout: Rollout, epochs: Sequence[int] | None
    ) -> Iterator[Rollout]:
        """Yield this rank's part of each mini-batch: random rows of the rollout over all ranks."""
        update = self.update
        passes, size = update.ppo_epochs, update.ppo_mini_batch_size
        if network == "critic":
            passes = update.critic_epochs or passes
            size = update.critic_mini_batch_size or size
        total = self.max_over_ranks(int(rollout.positions_B.max()) + 1)
        for epoch in range(passes) if epochs is None else epochs:
            rng = stream(self.run_seed, "mini-batches", network, self.rollouts_done, epoch)
            for chosen in torch.randperm(total, generator=rng).split(size):
                mine_B = torch.isin(rollout.positions_B, chosen.to(self.device))
                yield rollout.select(mine_B.nonzero()[:, 0])

    def _micro_batches(self, mini_batch: Rollout, rollout: Rollout) -> Iterator[Rollout]:
        """Cut a mini-batch into equally many pieces on all ranks.

        A rank with nothing left goes along with a row of weight 0, for all must do the same number
        of backward passes.
        """
        rows = self._micro_batch_rows(mini_batch)
        missing = self.max_over_ranks(len(rows)) - len(rows)  # agreed on before any backward pass
        yield from (mini_batch.select(r) for r in rows)
        yield from [rollout.filler(mini_batch)] * missing

    def critic_state(self) -> dict[str, Any]:
        """Return a copy, on the CPU, of the critic's weights and of its optimizer's state.

        If they are sharded, a rank's copy is of its own part.
        """
        assert self.critic is not None
        state = {
            "weights": self.critic.state_dict(),
            "optimizer": self._optimizer("critic").state_dict(),
        }
        copied: dict[str, Any] = apply_to_collection(
            state, Tensor, lambda tensor: tensor.detach().to("cpu", copy=True)
        )
        return copied

    def restore_critic(self, state: dict[str, Any]) -> None:
        """Go back to what `critic_state` has returned."""
        assert self.critic is not None
        load_whole_or_sharded(
            self.critic, self._optimizer("critic"), state["weights"], state["optimizer"]
        )
