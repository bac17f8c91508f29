"""Count the tokens that value pretraining generates: `python -m benchmarks.value_pretraining`.

Both ways fit the same critic with the same settings on rollouts of the same frozen policy:

    fresh   every rollout is fitted once and discarded, as is usual
    replay  each step fits the new rollout once and stored ones `REPLAYS` times (ours)

Explained variance is measured on the same responses to other problems, which neither way is fitted
on. Tokens are all generated tokens, including those of responses that `replay` holds out. The
policy is cold-started here, on generated sums. Results are medians over seeds of the critic's data;
the last line is JSON:

    token_ratio       tokens of fresh / of replay until they reach the final value of fresh
    token_ratio_low   the smallest ratio of the seeds
    fresh_ev          final explained variance of fresh, the mean of its last rollouts
    replay_ev         the same of replay
    fresh_tokens      tokens generated until fresh first has 95 % of `fresh_ev`
    replay_tokens     tokens generated until replay first has it

The 95 % allow for noise: the curves are flat at their end, and the remaining 5 % are less than the
difference between two critics that were fitted in different orders.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
from typing_extensions import override

from benchmarks import measure
from lightning_vcppo import AIMEDataModule, VCPPOModule
from lightning_vcppo.callbacks import ValuePretraining
from lightning_vcppo.data.generator import ProblemSettings
from lightning_vcppo.metrics.rollout import describe_fit
from lightning_vcppo.modules.cold_start import ColdStartModule
from lightning_vcppo.rollouts.rollout import Rollout
from lightning_vcppo.settings import OptimizerSettings, SamplingSettings, UpdateSettings

PROBLEMS: Any = {"families": ["sum"], "min_steps": 3, "max_steps": 3}
IMPERFECT: Any = {"slip_rate": 0.04, "rough_rate": 0.35}
SAMPLING = SamplingSettings(max_response_length=144)
PROMPTS, TEST_PROMPTS, COLD_START_UPDATES = 128, 384, 600
FRESH_ROLLOUTS, REPLAY_ROLLOUTS, REPLAYS = 18, 6, 4
LAST, ENOUGH = 3, 0.95
"""Number of last rollouts whose mean explained variance is the target, and the share to reach."""

Curve = list[tuple[int, float]]
"""Tokens generated so far and explained variance, after each rollout."""


def cold_start(directory: Path) -> str:
    """Cold-start a tiny policy that adds, with mistakes; return its directory."""
    L.seed_everything(0, verbose=False)
    module = ColdStartModule(
        measure.actor_fields("model/tiny_qwen2"),
        optimizer=OptimizerSettings(lr=3e-3, warmup_updates=30),
    )
    data = AIMEDataModule(
        generated=ProblemSettings(**PROBLEMS, **IMPERFECT),
        train_size=32 * COLD_START_UPDATES + 2000,
        val_size=0,
        prompts_per_rollout=32,
    )
    trainer(directory, COLD_START_UPDATES).fit(module, data)
    module.export(directory)
    return str(directory / "actor")


class Judge(L.Callback):
    """Measure the critic on the test responses after each rollout."""

    def __init__(self) -> None:
        """Start an empty curve."""
        self.curve: Curve = []
        self._test: Rollout | None = None

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Sample the test responses."""
        assert isinstance(pl_module, VCPPOModule)
        ((batch,),) = trainer.datamodule.val_dataloader()  # type: ignore[attr-defined]
        self._test = pl_module.sample(batch, SAMPLING, "test")

    @override
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        """Add a point."""
        assert isinstance(pl_module, VCPPOModule) and self._test is not None
        mask_BT = self._test.response_mask_BT
        returns_BT = self._test.scores_B[:, None].expand_as(mask_BT)
        with torch.no_grad():
            (values_BT,) = pl_module.read(pl_module.scorer.critic_values, self._test)
        tokens = int(trainer.callback_metrics["value_pretraining/generated_tokens"])
        explained = describe_fit(values_BT, returns_BT, mask_BT)["explained_variance"]
        self.curve.append((tokens, explained))


def pretrain(
    actor: str, directory: Path, seed: int, rollouts: int, replays: int, lr: float
) -> Curve:
    """Fit a critic and return its curve."""
    L.seed_everything(seed, verbose=False)
    module = VCPPOModule(
        actor,
        sampling=SAMPLING,
        update=UpdateSettings(ppo_mini_batch_size=32, ppo_max_token_len_per_gpu=8192),
        critic_optimizer=OptimizerSettings(lr=lr),
    )
    data = AIMEDataModule(
        generated=ProblemSettings(**PROBLEMS),
        train_size=PROMPTS * FRESH_ROLLOUTS + 500,
        val_size=TEST_PROMPTS,
        val_batch_size=TEST_PROMPTS,
        prompts_per_rollout=PROMPTS,
    )
    schedule = ValuePretraining(
        max_rollouts=rollouts + 1,  # the phase does not end, so the curve shows the latest critics
        min_rollouts=rollouts + 1,
        replays=replays,
        held_out_share=0.25 if replays else 1 / PROMPTS,  # the least, because fresh does not use it
        dirpath=str(directory),
    )
    judge = Judge()
    trainer(directory, rollouts, schedule, judge).fit(module, data)
    return judge.curve


def trainer(directory: Path, batches: int, *callbacks: L.Callback) -> L.Trainer:
    """Make a trainer without output."""
    return measure.quiet_trainer(
        limit_train_batches=batches,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        default_root_dir=directory,
        callbacks=list(callbacks),
    )


def end(curve: Curve) -> float:
    """Return the final explained variance of a curve, averaged over noise."""
    return statistics.fmean(explained for _, explained in curve[-LAST:])


def tokens_to(curve: Curve, explained_variance: float) -> float:
    """Return the tokens at which a curve first reaches an explained variance, or infinity."""
    return next((float(tokens) for tokens, ev in curve if ev >= explained_variance), float("inf"))


def main() -> None:
    """Cold-start a policy, pretrain its critic both ways, print tables and a line of JSON."""
    parser = argparse.ArgumentParser("python -m benchmarks.value_pretraining")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds of the critic's data")
    parser.add_argument("--lr", type=float, default=3e-4, help="the critic's rate, both ways")
    arguments = parser.parse_args()
    seeds, lr = range(1, arguments.seeds + 1), arguments.lr
    measure.start()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        actor = cold_start(directory)
        fresh = [pretrain(actor, directory, seed, FRESH_ROLLOUTS, 0, lr) for seed in seeds]
        replay = [pretrain(actor, directory, seed, REPLAY_ROLLOUTS, REPLAYS, lr) for seed in seeds]
    report(fresh, replay)


def report(fresh: list[Curve], replay: list[Curve]) -> None:
    """Print explained variance by rollouts, then the tokens to reach the final value of fresh."""
    rows: list[list[object]] = []
    for rollouts in (1, 2, 3, 4, 5, 6, 9, 12, 15, 18):
        of_ways = [
            statistics.median(curve[rollouts - 1][1] for curve in curves)
            if rollouts <= len(curves[0])
            else ""
            for curves in (fresh, replay)
        ]
        tokens = statistics.median(curve[rollouts - 1][0] for curve in fresh)
        rows.append([f"{rollouts} rollouts", int(tokens), *of_ways])
    title = f"Explained variance of {TEST_PROMPTS} unseen responses, medians of {len(fresh)} seeds"
    measure.print_table(title, ["", "tokens", "fresh", f"replay x{REPLAYS}"], rows)

    targets = [ENOUGH * end(curve) for curve in fresh]
    fresh_tokens = [tokens_to(*pair) for pair in zip(fresh, targets, strict=True)]
    replay_tokens = [tokens_to(*pair) for pair in zip(replay, targets, strict=True)]
    ratios = [a / b for a, b in zip(fresh_tokens, replay_tokens, strict=True)]
    print()
    measure.print_table(
        f"Generated tokens until {ENOUGH:.0%} of the explained variance that fresh ends with",
        ["seed", "to reach", "fresh", "replay", "ratio"],
        [
            [str(i), *row]
            for i, row in enumerate(
                zip(targets, fresh_tokens, replay_tokens, ratios, strict=True), start=1
            )
        ],
    )
    print()
    measure.print_json(
        {
            "token_ratio": statistics.median(ratios),
            "token_ratio_low": min(ratios),
            "fresh_ev": statistics.median(map(end, fresh)),
            "replay_ev": statistics.median(map(end, replay)),
            "fresh_tokens": statistics.median(fresh_tokens),
            "replay_tokens": statistics.median(replay_tokens),
        }
    )


if __name__ == "__main__":
    main()
