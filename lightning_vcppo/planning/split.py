"""Divide devices between sampling and training, which run at the same time, one rollout apart."""

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
        sampling_s: Seconds to sample a rollout.
        training_s: Seconds to train on a rollout.
    """

    sampling: int
    training: int
    sampling_s: float
    training_s: float

    @property
    def seconds(self) -> float:
        """Seconds per rollout when both run at the same time."""
        return max(self.sampling_s, self.training_s)

    @property
    def sentence(self) -> str:
        """The advice that `vcppo plan` prints."""
        return (
            f"One rollout ahead (--model.engine.rollouts_ahead=1): {self.sampling} to sample "
            f"(vcppo serve), {self.training} to train, {rounded(self.seconds)} s a rollout; "
            f"sampling {rounded(self.sampling_s)} s, training {rounded(self.training_s)} s."
        )


def best_split(run: Run, rates: Rates, devices_per_machine: int) -> Split | None:
    """Return the fastest division of the devices; None if no division fits.

    The number of training devices must divide the prompts of a rollout, and the run must fit on
    them. Each sampling device is a server, which must hold a copy of the actor and one response.

    Args:
        run: The run on all devices, including those that already sample for it.
        rates: Rates of one device.
        devices_per_machine: Number of devices that are connected without the network.
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
    """Return the run on these numbers of devices, sharded over all that train if it was before."""
    shards = training if run.shards == run.devices else min(run.shards, training)
    return replace(
        run,
        devices=training,
        shards=shards,
        engine="vllm_server",
        engine_bytes=SERVER_BYTES[run.device],
        sampling_devices=sampling,
    )
