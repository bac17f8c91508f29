"""Compare the critic with outcomes while training: V(prompt) with the prompt's pass rate."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor
from typing_extensions import override

from lightning_vcppo.common.files import may_write
from lightning_vcppo.common.seeding import stream, stream_seed
from lightning_vcppo.metrics.calibration import (
    Audit,
    Forecasts,
    audit_values,
    calibrate,
    forecasts_of_prompts,
    join_forecasts,
    success_probability,
)
from lightning_vcppo.rollouts.rollout import of_all_ranks

from .base import RolloutMonitor

if TYPE_CHECKING:
    from lightning_vcppo.modules.vcppo import VCPPOModule
    from lightning_vcppo.rollouts.rollout import Rollout


class CriticCalibration(RolloutMonitor):
    """Log `calibration/*` and write the reliability curve to `diagnostics/calibration.jsonl`.

    V before the first token of the responses is compared with the share of them that is right; with
    one sample a prompt, with its outcome. V is from before the updates, so the critic has not been
    fitted on these responses. The numbers are computed over the last rollouts that together have
    `window_prompts` prompts, because few prompts are noisy. With a module without critic or
    rollouts the callback does nothing.

    The audit, off by default, continues responses several times from random positions, with the
    module's own engine, and compares the mean reward with V there. It draws from its own random
    streams, so a run with audit has the same weights as one without. In the policy phase the policy
    has changed in between by the updates of one rollout.
    """

    file = "calibration.jsonl"

    def __init__(
        self,
        window_prompts: int = 512,
        num_bins: int = 10,
        reward_min: float = -1.0,
        reward_max: float = 1.0,
        audit_every: int = 0,
        audit_prefixes: int = 32,
        audit_continuations: int = 8,
        dirpath: str | None = None,
    ) -> None:
        """Set window, bins and audit.

        Args:
            window_prompts: Minimum number of prompts over which one number is computed.
            num_bins: Number of bins of the reliability curve.
            reward_min: Reward of a wrong response.
            reward_max: Reward of a right one.
            audit_every: Rollouts from one audit to the next; 0 disables the audit.
            audit_prefixes: Number of prefixes in an audit, over all ranks.
            audit_continuations: Number of continuations of each prefix.
            dirpath: Directory of the file; None means `diagnostics/` in the run's directory.

        Raises:
            ValueError: For a number that is too small, or an empty range of rewards.
        """
        for name, number, least in (
            ("window_prompts", window_prompts, 1),
            ("num_bins", num_bins, 1),
            ("audit_every", audit_every, 0),
            ("audit_prefixes", audit_prefixes, 1),
            ("audit_continuations", audit_continuations, 2),
        ):
            if number < least:
                raise ValueError(f"{name}: expected >= {least}, got {number}")
        if reward_min >= reward_max:
            raise ValueError(
                f"reward_min: expected below reward_max, got {reward_min} and {reward_max}"
            )
        super().__init__(dirpath)
        self._window_prompts = window_prompts
        self._num_bins = num_bins
        self._rewards = {"reward_min": reward_min, "reward_max": reward_max}
        self._audit_every = audit_every
        self._prefixes = audit_prefixes
        self._continuations = audit_continuations

    @override
    def begin_run(self) -> None:
        """Start with an empty window."""
        super().begin_run()
        self._window: list[Forecasts] = []

    @override
    def state_dict(self) -> dict[str, Any]:
        """Return the window."""
        return {"window": [dict(vars(part)) for part in self._window]}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the window."""
        self._window = [Forecasts(**part) for part in state_dict["window"]]

    @override
    def on_rollout(self, trainer: Trainer, module: VCPPOModule, rollout: Rollout) -> None:
        """Compare the forecasts with the outcomes of the rollout that was just learned from."""
        if rollout.values_BT is None:
            return
        ranks = trainer.world_size
        self._remember(self._forecasts(module, rollout, ranks))
        calibration = calibrate(join_forecasts(self._window), self._num_bins)
        entry: dict[str, Any] = {
            "rollout": module.rollouts_done,
            "phase": self._phase.value,
            **asdict(calibration),
        }
        metrics = calibration.scalars()
        if self._audit_every and module.rollouts_done % self._audit_every == 0:
            audit = self._audit(module, rollout, ranks)
            entry["audit"] = asdict(audit)
            metrics |= {f"audit_{name}": value for name, value in audit.scalars().items()}
        module.log_dict(
            {f"calibration/{k}": v for k, v in metrics.items()}, batch_size=len(rollout)
        )
        if may_write(trainer):
            self._log(trainer).append(entry)

    def _forecasts(self, module: VCPPOModule, rollout: Rollout, ranks: int) -> Forecasts:
        """Return the forecasts for the prompts of all ranks."""
        assert rollout.values_BT is not None
        columns = (
            success_probability(rollout.values_BT[:, 0], **self._rewards),
            rollout.correct_B,
            rollout.group_ids_B,
        )
        table_R3 = of_all_ranks(
            torch.stack([column_B.double() for column_B in columns], 1),
            rollout.positions_B,
            ranks=ranks,
            reduce=module.sum_over_ranks,
        ).cpu()
        predicted_R, correct_R, group_ids_R = table_R3.unbind(1)
        return forecasts_of_prompts(predicted_R, correct_R, group_ids_R)

    def _remember(self, forecasts: Forecasts) -> None:
        """Add a rollout to the window, and drop those that are no longer needed."""
        self._window.append(forecasts)
        while sum(map(len, self._window[1:])) >= self._window_prompts:
            del self._window[0]

    def _audit(self, module: VCPPOModule, rollout: Rollout, ranks: int) -> Audit:
        """Continue responses from the same number of random positions on each rank."""
        assert rollout.values_BT is not None
        name = (module.run_seed, "audit", module.rollouts_done, module.global_rank)
        prefixes, rng = math.ceil(self._prefixes / ranks), stream(*name)
        row_P = torch.randint(len(rollout), (prefixes,), generator=rng).to(module.device)
        uniform_P = torch.rand(prefixes, generator=rng).to(module.device)
        kept_P = (uniform_P * rollout.response_lengths_B[row_P]).long()
        seeds = [stream_seed(*name, i) for i in range(prefixes * self._continuations)]
        rewards_PM = continue_responses(module, rollout, row_P, kept_P, seeds)
        table = of_all_ranks(
            torch.cat([rollout.values_BT[row_P, kept_P][:, None], rewards_PM], 1).double(),
            module.global_rank * prefixes + torch.arange(prefixes, device=module.device),
            ranks=ranks,
            reduce=module.sum_over_ranks,
        )
        return audit_values(table[:, 0], table[:, 1:])


def continue_responses(
    module: VCPPOModule, rollout: Rollout, row_P: Tensor, kept_P: Tensor, seeds: list[int]
) -> Tensor:
    """Sample the rest of responses again, and return the rewards.

    Args:
        module: Module whose policy, engine, verifier and shaping are used.
        rollout: The responses.
        row_P: Row of the response for each prefix.
        kept_P: Number of its tokens in the prefix.
        seeds: P x M seeds.

    Returns:
        rewards_PM.
    """
    again = len(seeds) // len(row_P)
    row_N, kept_N = row_P.repeat_interleave(again), kept_P.repeat_interleave(again)
    rows, keeps = row_N.tolist(), kept_N.tolist()
    prompt_lengths = rollout.prompt_lengths_B[row_N].tolist()
    known = [
        rollout.input_ids_BL[row, : length + kept].tolist()
        for row, length, kept in zip(rows, prompt_lengths, keeps, strict=True)
    ]
    limit = module.sampling.max_response_length
    settings = replace(module.sampling, max_response_length=limit - min(keeps))
    sampled = module.generate(known, seeds, settings)
    prompts, responses = [], []
    for i, ids in enumerate(known):
        new = sampled.response_ids_BT[i][sampled.response_mask_BT[i]].tolist()[: limit - keeps[i]]
        prompts.append(ids[: prompt_lengths[i]])
        responses.append(ids[prompt_lengths[i] :] + new)
    problems = [rollout.problems[row] for row in rows]
    _, grades = module.sampler.grade(problems, prompts, responses)
    lengths_N = torch.tensor([*map(len, responses)], device=module.device)
    scored = rollout.select(row_N).with_(
        response_mask_BT=torch.arange(limit, device=module.device) < lengths_N[:, None],
        scores_B=torch.tensor(
            [grade.reward for grade in grades], dtype=torch.float32, device=module.device
        ),
    )
    return module.shape_rewards(scored).scores_B.view(-1, again)
