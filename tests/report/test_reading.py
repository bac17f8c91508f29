"""What `vcppo report` reads in a run's directory, and the numbers it makes of that."""

from __future__ import annotations

import json
import math
import re
import shutil

import pytest
import yaml

from lightning_vcppo.data import prompts
from lightning_vcppo.metrics import positions as training_profiles
from lightning_vcppo.report import reading
from lightning_vcppo.report.drawing import curves
from lightning_vcppo.report.page import differences, render
from lightning_vcppo.report.plotting import smooth
from lightning_vcppo.report.reading import read_run, read_runs
from lightning_vcppo.report.summary import headline, profiles, reach, reliability, stages
from tests.support.report_runs import (
    LENGTH,
    metrics,
    position,
    response,
    write_csv,
    write_jsonl,
    write_run,
)
from tests.support.tiny_runs import run_program


def read(directory):
    return read_run(directory, directory.name)


# Reading


def test_what_a_run_writes_is_what_the_report_reads_without_torch():
    assert reading.DECILES == training_profiles.NUM_DECILES
    assert reading.HELD_OUT == prompts.HELD_OUT


def test_rows_of_one_step_are_one_row(tmp_path):
    rows = [{"step": 2.0, "rollout/accuracy": 0.5}, {"step": 2.0, "eval/accuracy": 0.7}]
    write_csv(tmp_path / "metrics.csv", rows)
    assert read(tmp_path).rows[2] == {"step": 2, "rollout/accuracy": 0.5, "eval/accuracy": 0.7}


def test_half_written_last_lines_are_left_out(tmp_path):
    directory = write_run(tmp_path / "run")
    write_csv(directory / "metrics.csv", metrics(rollouts=5), end="")
    write_jsonl(directory / "diagnostics" / "positions.jsonl", [position(1)], end='\n{"rollout": 2')
    run = read(directory)
    assert max(run.rows) == 4
    assert [row["rollout"] for row in run.positions] == [1]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("metrics.csv", "", "metrics.csv: no complete row yet"),
        ("metrics.csv", "step,a\n1,x\n2,3\n", "metrics.csv:2: expected a row of numbers"),
        ("metrics.csv", f"step,a\n1,{'1' * 140_000}\n", "metrics.csv: expected CSV as CSVLogger"),
        ("metrics.csv", "a\n1\n", "metrics.csv:2: expected a row of numbers with a step"),
        ("config.yaml", "a: [1", "config.yaml: expected YAML"),
        ("config.yaml", "word", "config.yaml: expected a mapping of settings, got str"),
        ("diagnostics/positions.jsonl", "{\n{}\n", "positions.jsonl:1: expected one JSON object"),
        ("diagnostics/positions.jsonl", "{}\n", "positions.jsonl:1: expected an object with decil"),
        ("diagnostics/calibration.jsonl", "3\n", "calibration.jsonl:1: expected an object with bi"),
        ("evaluation/rollouts_000004.jsonl", "{}\n", "000004.jsonl:1: expected an object with pro"),
    ],
)
def test_what_cannot_be_read_is_named(name, text, message, tmp_path):
    directory = write_run(tmp_path / "run")
    (directory / name).write_text(text)
    with pytest.raises(ValueError, match=re.escape(message)):
        read(directory)


def test_binary_metrics_are_refused(tmp_path):
    (tmp_path / "metrics.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"metrics\.csv: expected UTF-8 text"):
        read(tmp_path)


def test_runs_have_names_that_tell_them_apart(tmp_path):
    directories = [write_run(tmp_path / name) for name in ("a/demo", "b/demo", "ppo")]
    names = [run.name for run in read_runs(directories)]
    assert names == [str(directories[0]), str(directories[1]), "ppo"]
    with pytest.raises(ValueError, match="once, got it twice"):
        read_runs([directories[0], directories[0]])


def test_value_pretraining_ends_where_its_rollouts_do(tmp_path):
    run = read(write_run(tmp_path / "run", pretraining=4))
    assert run.policy_start == 4
    assert run.curve("value_pretraining/loss")[0] == [1, 2, 3, 4]
    assert read(write_run(tmp_path / "ppo", pretraining=0)).policy_start == 0


def test_infinite_numbers_are_no_part_of_a_curve(tmp_path):
    rows = [{"step": float(i), "decay/actor_horizon": x} for i, x in enumerate([math.inf, 5.0])]
    write_csv(tmp_path / "metrics.csv", rows)
    assert read(tmp_path).curve("decay/actor_horizon") == ([1], [5.0])


# Evaluations


def test_accuracy_is_a_mean_over_problems(tmp_path):
    directory = write_run(tmp_path / "run")
    graded = {"a": [True, True, True], "b": [False], "c": [True, False]}  # rates 1, 0 and 1/2
    rows = [response(p, c, index=p, finished=c) for p, cs in graded.items() for c in cs]
    write_jsonl(directory / "evaluation" / "rollouts_000012.jsonl", rows)
    last = read(directory).evaluations[-1]
    assert (last.problems, last.k, last.accuracy) == (3, 2, 0.5)
    assert last.truncation_rate == pytest.approx(2 / 6)
    standard_error = 0.5 / math.sqrt(3)  # the rates' standard deviation is 1/2
    assert last.interval == pytest.approx((0.0, min(1.0, 0.5 + 1.96 * standard_error)))


def test_logged_rates_and_intervals_are_taken_over(tmp_path):
    directory = write_run(tmp_path / "run")
    rows = metrics()
    rows[-1] |= {"eval/accuracy_low": 0.4, "eval/accuracy_high": 0.9, "eval/pass_at_k": 0.75}
    write_csv(directory / "metrics.csv", rows)
    first, last = read(directory).evaluations
    assert (last.interval, last.pass_at_k, last.maj_at_k) == ((0.4, 0.9), 0.75, None)
    assert first.pass_at_k is None


@pytest.mark.parametrize(("right", "ends"), [(False, (0, 0.602)), (True, (0.398, 1))])
def test_none_or_all_of_four_have_an_interval_with_a_width(tmp_path, right, ends):
    directory = write_run(tmp_path / "run")
    rows = metrics()
    rows[-1] |= {"eval/accuracy_low": float(right), "eval/accuracy_high": float(right)}
    write_csv(directory / "metrics.csv", rows)  # as earlier versions logged it
    of_four = [response(f"{i}?", right, index=i) for i in range(4)]
    for step in (4, 12):
        write_jsonl(directory / "evaluation" / f"rollouts_{step:06d}.jsonl", of_four)
    first, last = read(directory).evaluations
    assert first.interval == last.interval == pytest.approx(ends, abs=1e-3)
    low, high = (f"{100 * end:.1f}\N{NO-BREAK SPACE}%" for end in ends)
    assert f"{low} \N{EN DASH} {high}" in render([read(directory)])


def test_sets_are_kept_apart_in_their_order(tmp_path):
    directory = write_run(tmp_path / "run")
    for step, right in ((4, False), (12, True)):
        rows = [response("x", right), response("y", True, evaluation_set="aime24")]
        write_jsonl(directory / "evaluation" / f"rollouts_{step:06d}.jsonl", rows)
    rows = metrics()
    rows[-1] |= {"eval/maj_at_k": 0.1, "eval/aime24/maj_at_k": 0.2}
    write_csv(directory / "metrics.csv", rows)
    found = read(directory).evaluations
    assert [(e.name, e.step, e.accuracy, e.maj_at_k) for e in found] == [
        *[("held_out", 4, 0.0, None), ("held_out", 12, 1.0, 0.1)],
        *[("aime24", 4, 1.0, None), ("aime24", 12, 1.0, 0.2)],
    ]


def test_a_run_starts_where_its_actor_was_evaluated(tmp_path):
    directory = write_run(tmp_path / "run")
    config = yaml.safe_load((directory / "config.yaml").read_text())
    config["model"]["init_args"]["actor"] = str(tmp_path / "cold_start" / "actor")
    (directory / "config.yaml").write_text(yaml.safe_dump(config))
    earlier = tmp_path / "cold_start" / "evaluation" / "updates_000600.jsonl"
    same = [json.loads(x) for x in (directory / "evaluation/rollouts_000004.jsonl").open()]
    write_jsonl(earlier, same)
    start, *others = read(directory).evaluations
    assert (start.step, start.source) == (0, "cold_start")
    assert [e.step for e in others] == [4, 12]
    write_jsonl(earlier, same[1:])  # other problems do not compare
    assert [e.step for e in read(directory).evaluations] == [4, 12]


# Numbers


def test_headline(tmp_path):
    directory = write_run(tmp_path / "run")
    head = headline(read(directory))
    assert head.accuracy.where == "5 held-out problems"
    assert (head.accuracy.before, head.accuracy.after) == (0.0, 2 / 5)
    assert head.explained_variance == 0.5  # of rollout 5, the first that the policy learns from
    assert (head.length.before, head.length.after) == (LENGTH, LENGTH)
    assert (head.rollouts, head.pretraining) == (12, 4)
    shutil.rmtree(directory / "evaluation")
    head = headline(read(directory))
    assert (head.accuracy.before, head.accuracy.after) == pytest.approx((0.25, 0.33))
    assert (head.accuracy.where, head.interval) == ("training rollouts", None)


def test_smooth_is_a_moving_average_over_a_tenth():
    assert smooth([1.0, 2.0]) == ([1.0, 2.0], 1)
    assert smooth([0.0, *[2.0] * 19]) == ([0.0, 1.0, *[2.0] * 18], 2)


def test_profiles_come_from_the_diagnostics_or_else_from_the_metrics(tmp_path):
    directory = write_run(tmp_path / "run")
    run = read(directory)
    assert profiles(run, "value")[0] == (1, pytest.approx([1 + i / 10 for i in range(10)]))
    assert math.isnan(profiles(run, "value", "incorrect")[0][1][9])
    assert profiles(run, "entropy") == []
    shutil.rmtree(directory / "diagnostics")
    rows = metrics()
    rows[0] |= {f"decay/value_decile_{i}": float(i) for i in range(9)}  # the tenth was empty
    write_csv(directory / "metrics.csv", rows)
    ((step, means),) = profiles(read(directory), "value")
    assert (step, means[:9], math.isnan(means[9])) == (1, [float(i) for i in range(9)], True)


def test_stages_are_means_over_equal_parts(tmp_path):
    run = read(write_run(tmp_path / "run"))
    found = stages(run, "value", "incorrect")
    assert [span for span, _ in found] == [
        f"{a} to {b}" for a, b in ((1, 3), (4, 6), (7, 9), (10, 12))
    ]
    assert found[0][1][0] == pytest.approx(2.0)  # of 1, 2 and 3
    assert math.isnan(found[0][1][9])


def test_reach_of_the_reward(tmp_path):
    directory = write_run(tmp_path / "run")
    found = reach(read(directory))
    assert found.shares == pytest.approx((0.98**100, 1.0))  # as the monitor has seen it
    (directory / "diagnostics" / "positions.jsonl").unlink()
    assert reach(read(directory)).shares == pytest.approx((0.95**100, 1.0))  # as configured

    def with_advantage(**changes):
        config = yaml.safe_load((directory / "config.yaml").read_text())
        config["model"]["init_args"]["advantage"] |= changes
        (directory / "config.yaml").write_text(yaml.safe_dump(config))
        return reach(read(directory))

    assert with_advantage(length_adaptive_alpha=0.05).actor == pytest.approx(1 - 1 / (0.05 * 101))
    assert with_advantage(length_adaptive_alpha=0.001).actor == 0  # alpha x length is below 1
    assert with_advantage(estimator="group") is None


def test_calibration_when_the_policy_starts_and_at_the_end(tmp_path):
    run = read(write_run(tmp_path / "run"))
    at_start = [{"predicted": 0.5, "observed": 0.25, "count": 3}]
    run.calibrations[:0] = [{"rollout": i, "bins": at_start} for i in (3, 4, 5)]
    run.calibrations[1]["bins"] = [*at_start, {"predicted": None, "observed": None, "count": 0}]
    assert reliability(run) == [
        ("as the policy starts", [(0.5, 0.25, 3)]),
        ("at the end", [(0.2, 0.1, 4), (0.8, 0.4, 4)]),
    ]
    ppo = read(write_run(tmp_path / "ppo", pretraining=0))
    assert [moment for moment, _ in reliability(ppo)] == ["at the end"]


def test_differences_between_configs(tmp_path):
    a, b = write_run(tmp_path / "a"), write_run(tmp_path / "b")
    assert differences(read_runs([a, b])) == [("model.init_args.note", ["a", "b"])]


def test_a_directory_without_metrics_is_no_runs(tmp_path):
    with pytest.raises(ValueError, match=r"no metrics\.csv; expected the directory of a run"):
        read(tmp_path)


def test_the_files_of_vcppo_test_are_no_evaluations_of_the_run(tmp_path):
    directory = write_run(tmp_path / "run")
    before = read(directory).evaluations
    first = directory / "evaluation" / "rollouts_000004.jsonl"
    shutil.copy(first, first.with_name("test_rollouts_000004.jsonl"))
    assert read(directory).evaluations == before


def test_a_long_curve_is_drawn_twice_as_points_and_as_their_average(tmp_path):
    write_csv(tmp_path / "metrics.csv", metrics(rollouts=30, pretraining=0))
    raw, average = curves(read_runs([tmp_path]), "rollout/reward_mean", "reward")["data"]
    assert raw["opacity"] < 0.5 and raw["y"] == pytest.approx(
        [-0.5 + 0.02 * i for i in range(1, 31)]
    )
    assert (average["y"], 3) == smooth(raw["y"]) and average["y"] != raw["y"]
    assert average["x"] == raw["x"] == list(range(1, 31))


def test_metrics_of_a_script_are_found_where_lightning_writes_them(tmp_path, capsys):
    run = write_run(tmp_path / "mine")
    for version, rollouts in ((2, 5), (10, 7)):
        place = run / "lightning_logs" / f"version_{version}"
        place.mkdir(parents=True)
        write_csv(place / "metrics.csv", metrics(rollouts=rollouts))
    assert len(read(run).rows) == 12 and not read(run).notes  # its own first
    (run / "metrics.csv").unlink()
    assert len(read(run).rows) == 7
    run_program("report", run)
    printed = capsys.readouterr().out
    where = "lightning_logs/version_10/metrics.csv"
    assert f"mine: The metrics are those of {where}." in printed
    assert f"The metrics are those of {where}." in (run / "report.html").read_text()
    assert len(read(run / "lightning_logs" / "version_2").rows) == 5
