"""The test of a recommended lambda: its protocol, and what it calls held or falsified."""

from __future__ import annotations

import sys
from itertools import combinations
from pathlib import Path

import pytest

from experiments.lambda_recommendation.__main__ import lambda_of, main, tasks
from experiments.lambda_recommendation.verdict import verdict
from experiments.protocol import read_protocol
from tests.support.configs import printed

PROTOCOL = read_protocol("lambda_recommendation")
SEEDS = (0, 1, 2, 3, 4)


@pytest.mark.thorough
def test_arms_differ_in_lambda_alone(tmp_path: Path) -> None:
    for task, arms in tasks(PROTOCOL).items():
        assert [lambda_of(arm) for arm in arms] == [0.9, 0.95, 0.99, 1.0]
        configs = [printed(*arm.command(0, tmp_path)[1:]) for arm in arms]
        advantage = [c["model"]["init_args"]["advantage"] for c in configs]
        assert [a.pop("lambda_actor") for a in advantage] == [0.9, 0.95, 0.99, 1.0]
        assert all(config == configs[0] for config in configs)
        assert advantage[0]["lambda_critic"] == 1.0 and configs[0]["value_pretraining"]["enabled"]
        rates = printed(f"--config={arms[0].setting / 'rl.yaml'}")["model"]["init_args"]
        assert arms[0].actor_lr == rates["actor_optimizer"]["lr"]
        assert arms[0].critic_lr == rates["critic_optimizer"]["lr"]
        pairs = {(c.arm, c.reference) for c in PROTOCOL.contrasts if c.arm.startswith(task)}
        assert pairs == set(combinations([arm.name for arm in arms], 2))
    assert set(tasks(PROTOCOL)) == {"count", "fractions"} and PROTOCOL.seeds == SEEDS


def accuracy(**means: float) -> dict[float, dict[int, float]]:
    """Return accuracies whose differences vary little between seeds."""
    return {
        float(name[1:].replace("_", ".")): {s: m + 0.01 * s + 0.001 * (s * k % 3) for s in SEEDS}
        for k, (name, m) in enumerate(means.items(), 1)
    }


APART = accuracy(l0_9=0.2, l0_95=0.4, l1=0.6)


def test_verdicts_are_those_of_the_protocol() -> None:
    held = verdict(APART, 1.0, SEEDS)
    assert held.outcome == "held" and held.best == 1.0 and len(held.separated) == 3
    assert held.difference is not None and held.difference.mean == 0
    falsified = verdict(APART, 0.95, SEEDS)
    assert falsified.outcome == "falsified" and "+19.9 (+19.8 to +20.0) points" in falsified.line(
        "count", 0.95
    )
    assert verdict(APART, None, SEEDS).outcome == "nothing to test"
    noisy = {
        lam: {s: 0.5 + 0.1 * ((s * k) % 5 - 2) for s in SEEDS} for k, lam in ((1, 0.9), (2, 1))
    }
    inconclusive = verdict(noisy, 0.9, SEEDS)
    assert inconclusive.outcome == "inconclusive" and not inconclusive.separated
    assert "no two lambdas" in inconclusive.line("count", 0.9)
    missing = {lam: dict(list(of.items())[:-1]) for lam, of in APART.items()}
    assert verdict(missing, 1.0, SEEDS).outcome == "unfinished"
    with pytest.raises(ValueError, match=r"no arm has the recommended lambda 0\.5"):
        verdict(APART, 0.5, SEEDS)


def test_nothing_is_run_before_lambda_is_recommended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    results = f"--results={tmp_path / 'r.csv'}"
    monkeypatch.setattr(sys, "argv", ["x", results])
    with pytest.raises(SystemExit, match="no recommendation for count, fractions; --recommend"):
        main()
    monkeypatch.setattr(sys, "argv", ["x", results, "--report"])
    main()
    assert capsys.readouterr().out.count("unfinished, no verdict") == 2
    (tmp_path / "r.json").write_text('{"count": {}, "fractions": {}}')
    monkeypatch.setattr(sys, "argv", ["x", results, "--seeds", "200"])
    with pytest.raises(SystemExit, match="no arm is run with the pilot's seed"):
        main()
