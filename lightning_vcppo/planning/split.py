"""Divide devices between sampling and training that work at the same time, one rollout apart."""

from __future__ import annotations

from dataclasses import dataclass, replace

from lightning_vcppo.planning.advice import fits
from lightning_vcppo.planning.run import Run
from lightning_vcppo.planning.seconds import Rates, plan_seconds


@dataclass(frozen=True)
class Split:
    """Devices that sample and devices that train.

    Attributes:
        sampling: Devices that only sample.
        training: Devices that only train.
        sampling_s: Seconds in which a rollout is sampled.
        training_s: Seconds in which one is learned from.
    """

    sampling: int
    training: int
    sampling_s: float
    training_s: float

    @property
    def seconds(self) -> float:
        """Seconds of a rollout when both work at the same time."""
        return max(self.sampling_s, self.training_s)

    @property
    def sentence(self) -> str:
        """What to do, for `vcppo plan`."""
        return (
            f"One rollout ahead (--model.engine.rollouts_ahead=1): {self.sampling} to sample "
            f"(vcppo serve), {self.training} to train, {self.seconds:.2g} s a rollout; sampling "
            f"{self.sampling_s:.2g} s, training {self.training_s:.2g} s."
        )


def best_split(run: Run, rates: Rates, devices_per_machine: int) -> Split | None:
    """Return the division with which a rollout takes the least time; None if there is none.

    Training devices must divide the prompts of a rollout, and have to hold the run. Each sampling
    device holds a whole copy of the actor.

    Args:
        run: On all devices.
        rates: Of one device.
        devices_per_machine: More of them talk over the network.
    """
    found = []
    for training in range(1, run.devices):
        sampling = run.devices - training
        learner = _on(run, training)
        if run.prompts % training == 0 and fits(learner):
            learning = plan_seconds(learner, rates, devices_per_machine)
            sampled = plan_seconds(_on(run, sampling), rates, devices_per_machine).sampling
            found.append(Split(sampling, training, sampled, learning.total - learning.sampling))
    return min(found, key=lambda split: split.seconds, default=None)


def _on(run: Run, devices: int) -> Run:
    """Return the run on fewer devices, sharded over all of them if it was over all before."""
    shards = devices if run.shards == run.devices else min(run.shards, devices)
    return replace(run, devices=devices, shards=shards)
