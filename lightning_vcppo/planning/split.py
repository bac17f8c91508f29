"""Divide devices between sampling and training that work at the same time, one rollout apart."""

from __future__ import annotations

from dataclasses import dataclass, replace

from lightning_vcppo.planning.advice import fits
from lightning_vcppo.planning.run import SERVER_BYTES, Run
from lightning_vcppo.planning.seconds import Rates, plan_seconds, rounded


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
            f"(vcppo serve), {self.training} to train, {rounded(self.seconds)} s a rollout; "
            f"sampling {rounded(self.sampling_s)} s, training {rounded(self.training_s)} s."
        )


def best_split(run: Run, rates: Rates, devices_per_machine: int) -> Split | None:
    """Return the division with which a rollout takes the least time; None if there is none.

    Training devices must divide the prompts of a rollout, and have to hold the run. Each sampling
    device is a server, and has to hold a copy of the actor and one response.

    Args:
        run: On all devices; those that sample for it already are divided anew.
        rates: Of one device.
        devices_per_machine: More of them talk over the network.
    """
    found, devices = [], run.devices + run.sampling_devices
    for training in range(1, devices):
        sampling = devices - training
        learner = _on(run, training, sampling)
        if run.prompts % training == 0 and fits(learner):
            seconds = plan_seconds(learner, rates, devices_per_machine)
            learning = seconds.total - seconds.sampling
            found.append(Split(sampling, training, seconds.sampling, learning))
    return min(found, key=lambda split: split.seconds, default=None)


def _on(run: Run, training: int, sampling: int) -> Run:
    """Return the run on so many devices, sharded over all that train if it was before."""
    shards = training if run.shards == run.devices else min(run.shards, training)
    return replace(
        run,
        devices=training,
        shards=shards,
        engine="vllm_server",
        engine_bytes=SERVER_BYTES[run.device],
        sampling_devices=sampling,
    )
