"""Time rollouts by `rollouts_ahead`, with fixed times: `python -m benchmarks.overlap`.

No hardware is needed: sampling and training each take at least a fixed time, as if they ran on
separate devices, and everything else is a real run of a tiny model, with its threads, transfer of
weights, grading, scoring and updates. Sampling uses a copy of the actor (`transformers_copy`) that
returns no earlier than after `--sample_s`; the updates of a training step end no earlier than
`--train_s` after its rollout has arrived.

It prints two tables: with the same times in every rollout, and with sampling times that alternate
between a half and one and a half of `--sample_s`, which more than one rollout ahead evens out. The
last line is JSON:

    speedup_1_ahead   seconds of a rollout in turn / with one ahead, at the same times
    rollouts          number of timed rollouts of each, after one to warm up
    sample_s          the fixed time of sampling
    train_s           the fixed time of training
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch import Callback
from typing_extensions import override

from benchmarks import measure
from lightning_vcppo import AIMEDataModule, VCPPOModule
from lightning_vcppo.common import places
from lightning_vcppo.generation import GenerationEngine, Generations
from lightning_vcppo.rollouts.ahead import RolloutsAhead
from lightning_vcppo.rollouts.rollout import Rollout
from lightning_vcppo.rollouts.sampler import Sampler
from lightning_vcppo.settings import (
    EngineSettings,
    OptimizerSettings,
    SamplingSettings,
    UpdateSettings,
)

SAMPLE_S = TRAIN_S = 0.4
ROLLOUTS = 24
PROMPTS, RESPONSE = 4, 8
UNEVEN = (0.5, 1.5)
"""Multiples of the sampling time, in turn."""


class SlowEngine:
    """An engine that returns the responses of another engine after a fixed time."""

    detached = True

    def __init__(self, engine: GenerationEngine, seconds: Sequence[float]) -> None:
        """Wrap an engine.

        Args:
            engine: Engine that samples.
            seconds: Seconds of each call, repeated in turn.
        """
        self._engine, self._seconds, self._calls = engine, seconds, 0
        self.take_weights, self.forget_weights = engine.take_weights, engine.forget_weights
        self.sleep = engine.sleep

    def generate(
        self, prompt_ids: Sequence[Sequence[int]], seeds: Sequence[int], settings: SamplingSettings
    ) -> Generations:
        """Sample, and return after the fixed time."""
        ends_at = time.perf_counter() + self._seconds[self._calls % len(self._seconds)]
        self._calls += 1
        sampled = self._engine.generate(prompt_ids, seeds, settings)
        wait_until(ends_at)
        return sampled


class SlowSampler(Sampler):
    """A sampler whose engine takes a fixed time."""

    seconds: Sequence[float] = (SAMPLE_S,)

    @override
    def engine(self) -> GenerationEngine:
        """Return the engine, wrapped once."""
        if self._engine is None:
            self._engine = SlowEngine(super().engine(), self.seconds)
        return self._engine


class SlowModule(VCPPOModule):
    """A module that samples and trains in fixed times."""

    def __init__(self, actor: str, depth: int, sample_s: Sequence[float], train_s: float) -> None:
        """Replace the sampler.

        Args:
            actor: Directory of the actor.
            depth: Number of rollouts ahead.
            sample_s: Seconds to sample a rollout, repeated in turn.
            train_s: Seconds to train on a rollout.
        """
        engine = EngineSettings("transformers_copy", rollouts_ahead=depth)
        super().__init__(
            actor,
            reward="benchmarks.iteration.parity",
            sampling=SamplingSettings(max_response_length=RESPONSE),
            engine=engine,
            update=UpdateSettings(ppo_mini_batch_size=PROMPTS),
            actor_optimizer=OptimizerSettings(lr=1e-4),
        )
        self.sampler = SlowSampler(self.tokenizer, self.grader, engine)
        self.source.ahead = RolloutsAhead(depth, self.sampler)
        self._sample_s, self._train_s = sample_s, train_s

    @override
    def on_train_start(self) -> None:
        """Use the fixed times from now on, because earlier sampling only checks the model."""
        self.sampler.seconds = self._sample_s  # type: ignore[attr-defined]
        self.sampler.attach(self.actor)  # type: ignore[arg-type]

    @override
    def sample_rollout(self, batch: Any) -> Rollout | None:
        """Sample, and store the earliest time at which training on the rollout may end."""
        rollout = super().sample_rollout(batch)
        self._ends_at = time.perf_counter() + self._train_s
        return rollout

    @override
    def update_networks(self, rollout: Rollout) -> None:
        """Train, and return after the fixed time."""
        super().update_networks(rollout)
        wait_until(self._ends_at)


class Clock(Callback):
    """Stores the end of each rollout, and the share of time in which both sides worked."""

    def __init__(self) -> None:
        """Start empty."""
        self.ends: list[float] = []
        self.overlaps: list[float] = []

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Store the numbers of a rollout."""
        self.ends.append(time.perf_counter())
        self.overlaps.append(float(trainer.callback_metrics.get("time/overlap", 0.0)))


def wait_until(moment: float) -> None:
    """Sleep until a moment, as an engine that waits for another device."""
    while (left := moment - time.perf_counter()) > 0:
        places.move_on()
        time.sleep(min(left, 0.01))


def run(
    actor: str, depth: int, sample_s: Sequence[float], train_s: float, rollouts: int
) -> tuple[float, float]:
    """Return the mean seconds of a rollout, and the mean share in which both sides worked."""
    clock = Clock()
    trainer = measure.quiet_trainer(
        limit_train_batches=rollouts + 1,
        limit_val_batches=0,
        callbacks=[clock],
    )
    data = AIMEDataModule(
        train_size=PROMPTS * (rollouts + 4), val_size=1, prompts_per_rollout=PROMPTS, seed=0
    )
    trainer.fit(SlowModule(actor, depth, sample_s, train_s), data)
    overlaps = clock.overlaps[1:]
    return (clock.ends[-1] - clock.ends[0]) / rollouts, sum(overlaps) / len(overlaps)


def main() -> None:
    """Time both tables and print them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rollouts", type=int, default=ROLLOUTS)
    parser.add_argument("--sample_s", type=float, default=SAMPLE_S)
    parser.add_argument("--train_s", type=float, default=TRAIN_S)
    args = parser.parse_args()
    measure.start()
    times = (args.train_s, args.rollouts)
    with tempfile.TemporaryDirectory() as directory:
        actor = str(Path(directory) / "actor")
        measure.write_actor(Path(actor), measure.actor_fields("model/tiny_qwen2"))
        seconds: dict[int, float] = {}
        for title, shares, depths in (
            (f"sampling {args.sample_s:g} s, training {args.train_s:g} s", (1.0,), (0, 1, 2)),
            ("the same, sampling 0.5 and 1.5 times as long in turn", UNEVEN, (0, 1, 2)),
        ):
            rows = []
            for depth in depths:
                each, overlap = run(actor, depth, [s * args.sample_s for s in shares], *times)
                if shares == (1.0,):
                    seconds[depth] = each
                rows.append([f"{depth} ahead", each, overlap])
            for row in rows:
                row.append(rows[0][1] / row[1])  # type: ignore[operator]
            measure.print_table(title, ["", "s a rollout", "overlap", "speed-up"], rows)
    measure.print_json(
        {
            "speedup_1_ahead": seconds[0] / seconds[1],
            "rollouts": args.rollouts,
            "sample_s": args.sample_s,
            "train_s": args.train_s,
        }
    )


if __name__ == "__main__":
    main()
