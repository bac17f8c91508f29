"""Update networks: epochs, mini-batches over all ranks, micro-batches, one step each.

Two networks may learn in one pass, from the same micro-batches. Their gradients are those of the
sum of their losses, which share no weights; each has its own clipping and its own step, after both
losses were computed.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn

from lightning_vcppo.algorithm.losses import combine, is_extreme
from lightning_vcppo.common import places
from lightning_vcppo.common.seeding import stream, stream_seed
from lightning_vcppo.distributed.collectives import Ranks
from lightning_vcppo.distributed.sharding import full_scalar, load_complete_or_sharded
from lightning_vcppo.distributed.strategies import sum_gradients_once
from lightning_vcppo.modules.objectives import Objective
from lightning_vcppo.modules.optimizers import build_optimizer, warmed_up_lr
from lightning_vcppo.modules.scoring import Scorer
from lightning_vcppo.modules.update_health import UpdateHealth
from lightning_vcppo.rollouts.rollout import Rollout
from lightning_vcppo.settings import MasterWeights, OptimizerSettings, UpdateSettings

Network = Literal["policy", "critic"]


@dataclass(frozen=True)
class Backend:
    """Functions of the Trainer that an update needs.

    Attributes:
        ranks: Ranks of the run.
        run_backward: Runs the backward pass of this rank's share of a loss summed over ranks.
        summing: Returns the context of one of several backward passes of some optimizers' networks;
            pass True for the last.
        device: Device of losses and metrics.
    """

    ranks: Ranks
    run_backward: Callable[[Tensor], None]
    summing: Callable[[Sequence[Any], bool], AbstractContextManager[None]]
    device: torch.device

    @classmethod
    def of(cls, module: LightningModule, ranks: Ranks) -> Backend:
        """Return the backend of a module with a Trainer."""
        strategy = module.trainer.strategy
        return cls(
            ranks,
            # Strategies average over ranks; the loss of a mini-batch is the sum over ranks.
            run_backward=lambda loss: module.manual_backward(loss * ranks.count),
            summing=lambda optimizers, is_last: sum_gradients_once(
                strategy, optimizers, is_last=is_last
            ),
            device=module.device,
        )


class Updater:
    """Updates one network. If loss or gradient is not finite on any rank, all skip the step."""

    def __init__(
        self,
        network: Network,
        settings: OptimizerSettings,
        *,
        passes: int,
        mini_batch_size: int,
    ) -> None:
        """Collect the settings.

        Args:
            network: Name of the network, which names its random streams.
            settings: Learning rate, warm-up, clipping.
            passes: Number of passes over a rollout.
            mini_batch_size: Responses per update, over all ranks.
        """
        self.network, self.settings = network, settings
        self.passes, self.mini_batch_size = passes, mini_batch_size
        flag = "actor" if network == "policy" else network
        self.health = UpdateHealth(settings.max_skipped_updates, f"--model.{flag}_optimizer")
        self.updates_done = 0

    def means(self, history: list[dict[str, float]]) -> dict[str, float]:
        """Return the means over the updates, by logged name."""
        # A skipped update would make all means NaN, so it counts only if all were skipped.
        made = [u for u in history if math.isfinite(u["loss"]) and math.isfinite(u["grad_norm"])]
        history = made or history
        return {
            f"{self.network}/{key}": _combine_numbers(key, [update[key] for update in history])
            for key in history[0]
        }

    def step(self, optimizer: Any, totals: dict[str, Tensor], ranks: Ranks) -> dict[str, float]:
        """Clip, step and count."""
        lr = warmed_up_lr(self.settings, self.updates_done)
        parameters = []
        for group in optimizer.param_groups:
            group["lr"] = lr
            parameters += group["params"]
        grad_norm = full_scalar(
            torch.nn.utils.clip_grad_norm_(parameters, self.settings.max_grad_norm or math.inf)
        )
        broken = not (math.isfinite(grad_norm) and math.isfinite(float(totals["loss"])))
        totals = totals | {"broken": totals["loss"].new_tensor(float(broken))}
        summed = _combine_ranks(totals, ranks)
        broken_ranks = summed.pop("broken")
        if not broken_ranks:
            optimizer.step()
            self.updates_done += 1
        optimizer.zero_grad()
        self.health.count(skipped=broken_ranks > 0)
        return summed | {"grad_norm": grad_norm, "lr": lr}

    def mini_batches(
        self, rollout: Rollout, seed: tuple[int, int], epochs: Sequence[int], backend: Backend
    ) -> Iterator[Rollout]:
        """Yield this rank's part of each mini-batch: random rows of the rollout over all ranks."""
        run_seed, rollouts_done = seed
        total = backend.ranks.max(int(rollout.positions_B.max()) + 1)
        for epoch in epochs:
            rng = stream(run_seed, "mini-batches", self.network, rollouts_done, epoch)
            for chosen in torch.randperm(total, generator=rng).split(self.mini_batch_size):
                mine_B = torch.isin(rollout.positions_B, chosen.to(backend.device))
                yield rollout.select(mine_B.nonzero()[:, 0])


@dataclass(frozen=True)
class Learner:
    """A network in an update.

    Attributes:
        updater: Clips, steps and counts.
        objective: The network's loss.
        optimizer: Optimizer of the network, as Lightning wraps it.
    """

    updater: Updater
    objective: Objective
    optimizer: Any


def run_updates(
    learners: Sequence[Learner],
    rollout: Rollout,
    scorer: Scorer,
    backend: Backend,
    *,
    seed: tuple[int, int],
    epochs: Sequence[int] | None = None,
) -> dict[str, float]:
    """Do all updates on a rollout: epochs x mini-batches x micro-batches.

    Args:
        learners: One network, or policy and critic, which learn in one pass; the first determines
            passes and mini-batches.
        rollout: Rollout to learn from, with its targets.
        scorer: Cuts mini-batches into micro-batches.
        backend: Functions of the Trainer.
        seed: Seed of the run and number of the rollout, which determine the order of rows.
        epochs: Numbers of the passes, each with its own order; None means the updater's number.

    Returns:
        Means over the updates, by logged name.
    """
    first = learners[0].updater
    histories: list[list[dict[str, float]]] = [[] for _ in learners]
    numbers = range(first.passes) if epochs is None else epochs
    optimizers = [learner.optimizer for learner in learners]
    for mini_batch in first.mini_batches(rollout, seed, numbers, backend):
        weighed = mini_batch
        for learner in learners:
            learner.optimizer.zero_grad()
            weighed = learner.objective.weigh(weighed, backend.ranks.sum)
        totals: list[dict[str, Tensor]] = []
        pieces = list(scorer.micro_batches(weighed, rollout, backend.ranks))
        for left, micro_batch in zip(range(len(pieces) - 1, -1, -1), pieces, strict=True):
            with backend.summing(optimizers, left == 0):
                losses, parts = _read_losses(learners, micro_batch, scorer)
                backend.run_backward(functools.reduce(torch.add, losses))
            totals = [*map(_add_up, totals, parts)] if totals else parts
            places.move_on()
        for learner, total, history in zip(learners, totals, histories, strict=True):
            history.append(learner.updater.step(learner.optimizer, total, backend.ranks))
    metrics: dict[str, float] = {}
    for learner, history in zip(learners, histories, strict=True):
        metrics |= learner.updater.means(history)
    return metrics


def _read_losses(
    learners: Sequence[Learner], micro_batch: Rollout, scorer: Scorer
) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Return the loss of each network and its logged parts, after one forward pass if possible."""
    losses, logged = [], []
    with scorer.sharing_forward() if len(learners) > 1 else nullcontext():
        for objective in (learner.objective for learner in learners):
            loss, parts = objective.loss(micro_batch)
            assert len(parts) == len(objective.diagnostics), "ranks sum what is named there"
            parts = {"loss": loss, **{key: parts[key] for key in objective.diagnostics}}
            losses.append(loss)
            logged.append({key: part.detach() for key, part in parts.items()})
    return losses, logged


def _add_up(totals: dict[str, Tensor], parts: dict[str, Tensor]) -> dict[str, Tensor]:
    """Add the parts of one more micro-batch to the totals of those before."""
    return {key: combine(key, totals[key], part) for key, part in parts.items()}


def _combine_ranks(totals: dict[str, Tensor], ranks: Ranks) -> dict[str, float]:
    """Combine the numbers of all ranks in one sum; an extreme has one entry per rank."""
    rows = []
    for name, total in totals.items():
        rows.append(total.new_zeros(ranks.count if is_extreme(name) else 1))
        rows[-1][ranks.rank if is_extreme(name) else 0] = total
    numbers = iter(ranks.sum(torch.cat(rows)).tolist())
    return {
        name: _combine_numbers(name, [next(numbers) for _ in row])
        for name, row in zip(totals, rows, strict=True)
    }


def _combine_numbers(name: str, numbers: list[float]) -> float:
    """Return the mean of the numbers, or their extreme if the name is that of one."""
    if is_extreme(name):
        return min(numbers) if name.endswith("_min") else max(numbers)
    return sum(numbers) / len(numbers)


def build_updaters(
    update: UpdateSettings, actor: OptimizerSettings, critic: OptimizerSettings
) -> dict[Network, Updater]:
    """Return the updaters of actor and critic; the critic's sizes default to the actor's."""
    passes, size = update.ppo_epochs, update.ppo_mini_batch_size
    return {
        "policy": Updater("policy", actor, passes=passes, mini_batch_size=size),
        "critic": Updater(
            "critic",
            critic,
            passes=update.critic_epochs or passes,
            mini_batch_size=update.critic_mini_batch_size or size,
        ),
    }


def build_optimizers(
    updaters: Mapping[Network, Updater],
    networks: Mapping[Network, nn.Module | None],
    master_weights: MasterWeights,
    run_seed: int,
) -> list[torch.optim.Optimizer]:
    """Return one optimizer for each network that is not None, in the order of `networks`."""
    return [
        build_optimizer(
            updaters[name].settings,
            network.parameters(),
            master_weights,
            stream_seed(run_seed, "optimizer", name),
        )
        for name, network in networks.items()
        if network is not None
    ]


def copy_state(
    network: nn.Module, optimizer: Any, into: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return a copy, on the CPU, of a network's weights and of its optimizer's state.

    If they are sharded, each rank copies its own part.

    Args:
        network: A network.
        optimizer: Its optimizer.
        into: Earlier copy that is not needed any more; its memory is used again where it fits, for
            a copy has 12 bytes a weight, and there would be two at a time.
    """
    state = {"weights": network.state_dict(), "optimizer": optimizer.state_dict()}
    copied: dict[str, Any] = _copied(state, into)
    return copied


def _copied(value: Any, memory: Any) -> Any:
    """Return a copy of nested dicts and lists of tensors, in the memory of another one."""
    if isinstance(value, Tensor):
        fits = type(memory) is Tensor and type(value.detach()) is Tensor
        if fits and (memory.shape, memory.dtype) == (value.shape, value.dtype):
            return memory.copy_(value.detach())
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        known = memory if isinstance(memory, Mapping) else {}
        return {key: _copied(item, known.get(key)) for key, item in value.items()}
    return [_copied(item, None) for item in value] if isinstance(value, list) else value


def restore_state(network: nn.Module, optimizer: Any, state: dict[str, Any]) -> None:
    """Restore what `copy_state` has returned."""
    # Lightning's wrapper returns the wrapped optimizer's state, but would load only into itself.
    wrapped = optimizer.optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
    load_complete_or_sharded(network, wrapped, state["weights"], state["optimizer"])
