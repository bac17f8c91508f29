"""Gates and figure of the dose-response experiment, on invented rows."""

from experiments.dose_response import results

ARMS = [f"{family}_ratio_{ratio}" for family in results.FAMILIES for ratio in results.RATIOS]
ROWS = [
    {"arm": arm, "seed": str(seed), "accuracy": "0.5", "cold_start_accuracy": "0.05"}
    for arm in ARMS
    for seed in (0, 1)
]


def curve(arm: str, seed: int, bias: float) -> list[dict[str, str]]:
    """Return two rollouts of value pretraining or of the policy, and one more of the policy."""
    before = "" if arm.startswith("vcppo") else "0"
    rollouts = (before, "1", "2")
    return [
        {"arm": arm, "seed": str(seed), "policy_rollout": rollout, "bias": str(bias / (1 + 9 * i))}
        for i, rollout in enumerate(rollouts)
    ]


def test_gates_count_the_runs_that_pass_them():
    curves = [
        row
        for arm in ARMS
        for seed in (0, 1)
        for row in curve(arm, seed, 8.0 if arm.startswith("no") else 1.0 + 2 * seed)
    ]
    lines = results.gates(ROWS, curves).splitlines()
    assert lines[0] == "start: cold start 0.02 to 0.12 right: 2 of 2 pass (0.050 to 0.050)"
    assert lines[1] == "bias: above 0.4 without value pretraining: 12 of 12 pass (0.800 to 0.800)"
    assert lines[2] == "pretraining: below 0.2 in vcppo_ratio_0.2: 1 of 2 pass (0.100 to 0.300)"
    assert len(lines) == 5


def test_the_figure_has_a_point_for_each_run(tmp_path):
    curves = [row for arm in ARMS for seed in (0, 1) for row in curve(arm, seed, 0.5)]
    results.draw(ROWS, curves, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000
