"""Tables of an experiment: contrasts only when it is finished, and textbook numbers."""

import pytest

from experiments.ablation_report import draw_curves
from experiments.protocol_report import areas, collapsed, report

SEEDS = (0, 1, 2, 3, 4)
CONTRASTS = [("new", "old", True)]


def rows():
    return [
        {"arm": arm, "seed": str(seed), "accuracy": str(base + seed * step), "response_length": "9"}
        for arm, base, step in (("old", 0.1, 0.01), ("new", 0.3, 0.02))
        for seed in SEEDS
    ]


def curve(arm, accuracies, lengths):
    return [
        {"arm": arm, "seed": str(s), "policy_rollout": str(p), "accuracy": str(a)}
        | {"response_length": str(n)}
        for s in SEEDS
        for p, (a, n) in enumerate(zip(accuracies, lengths, strict=True))
    ]


CURVES = curve("old", ["0.2", *["0.09"] * 6], [100, *[49] * 6]) + curve("new", [0.2, 0.4], [9, 9])
CURVES[0] = CURVES[0] | {"policy_rollout": "1"}


def test_contrasts_are_shown_when_every_run_is_there():
    text = report(rows(), CURVES, ["old", "new"], SEEDS, CONTRASTS)
    assert "Unfinished" not in text
    assert "| `new` - `old` | +22.0 (+20.0 to +24.0) | " in text
    assert "| 5 of 5 (48 to 100 %) |" in text and "| 0 of 5 (0 to 52 %) |" in text
    assert "| 0.0625 | +15.5 |" in text  # 30.0 and 14.5 % in the first two rollouts of each seed
    part = report(rows()[:-1], CURVES, ["old", "new"], SEEDS, CONTRASTS)
    assert "Unfinished: 9 of 10 runs." in part and " - " not in part
    pilot = [{**row, "seed": "200"} for row in rows()]
    assert "Unfinished: 0 of 10 runs." in report(pilot, CURVES, ["old", "new"], SEEDS, CONTRASTS)


def test_a_collapse_is_of_both_accuracy_and_length():
    assert collapsed(CURVES)["old", 3] and not collapsed(CURVES)["new", 3]
    longer = [{**row, "response_length": "80"} for row in CURVES]
    assert not collapsed(longer)["old", 3]


def test_areas_are_over_the_rollouts_that_all_runs_have():
    assert areas(CURVES)["old", 1] == pytest.approx((0.2 + 0.09) / 2)
    assert areas(CURVES)["new", 1] == pytest.approx(0.3)


def test_curves_are_drawn_over_the_rollouts_of_the_policy(tmp_path):
    """Rollouts of value pretraining have no place on that axis, and none are needed."""
    pretraining = [{**row, "policy_rollout": ""} for row in CURVES]
    draw_curves(pretraining + CURVES, ["old", "new"], tmp_path / "curves.png", "policy_rollout")
    assert (tmp_path / "curves.png").stat().st_size > 10_000
