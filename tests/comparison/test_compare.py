"""`vcppo compare` on run directories written by hand and on committed rows."""

import csv
import json
import math
import os
import subprocess
import sys

import pytest
import yaml

from lightning_vcppo.cli.commands import compare as command
from lightning_vcppo.common.starts import START, fingerprint, start_fingerprints
from lightning_vcppo.comparison import curves, output
from lightning_vcppo.comparison.arms import group
from lightning_vcppo.comparison.cautions import warnings
from lightning_vcppo.comparison.contrasts import Options, compare, read
from tests.support.report_runs import response, write_csv, write_jsonl
from tests.support.tiny_runs import ROOT, run_program

PROBLEMS = 8


def write_seed(directory, seed, right, lambda_critic=1.0, pretraining=0, rollouts=6, **changes):
    """Write a run whose last policy solves the first `right` of eight problems."""
    directory.mkdir(parents=True)
    rows = []
    for step in range(1, rollouts + 1):
        row = {
            "step": float(step),
            "rollout/accuracy": changes.get("accuracy", 0.1 * step),
            "rollout/response_length": changes.get("length", 100.0),
            "rollout/tokens_per_second": 50.0,
            "time/generate_s": 3.0,
            "time/update_s": 1.0,
        }
        if pretraining:
            row["value_pretraining/rollouts"] = float(min(step, pretraining))
        rows.append(row)
    rows[-1] |= {"eval/accuracy": right / PROBLEMS, "eval/problems": float(PROBLEMS)}
    write_csv(directory / "metrics.csv", rows)
    model = {
        "actor": str(changes.get("actor", f"starts/seed_{seed}/cold_start/actor")),
        "advantage": {"lambda_critic": lambda_critic, "gamma": 1.0},
    }
    config = {
        "seed_everything": seed,
        "trainer": {"default_root_dir": str(directory), "max_epochs": 1},
        "model": {"init_args": model},
    }
    (directory / "config.yaml").write_text(yaml.safe_dump(config))
    texts = changes.get("problems", [f"{i} + 1?" for i in range(PROBLEMS)])
    records = [response(text, i < right, index=i) for i, text in enumerate(texts)]
    if changes.get("records", True):
        write_jsonl(directory / "evaluation" / f"rollouts_{rollouts:06d}.jsonl", records)
    return directory


@pytest.fixture
def sets(tmp_path):
    """Two arms of three seeds: 2, 3, 4 and 5, 5, 6 right answers of eight."""
    for arm, lam, rights in (("ppo", 0.95, (2, 3, 4)), ("vcppo", 1.0, (5, 5, 6))):
        for seed, right in enumerate(rights):
            write_seed(tmp_path / arm / f"seed_{seed}", seed, right, lam)
    return [tmp_path / "ppo", tmp_path / "vcppo"]


def run(paths, **options):
    options = Options(**options)
    return compare(read(paths, options), options)


# From directories


def test_arms_are_grouped_by_settings_and_paired_by_seed(sets):
    found = run(sets)
    assert [arm.name for arm in found.arms] == ["lambda_critic=0.95", "lambda_critic=1.0"]
    assert found.arms[1].values == {0: 0.625, 1: 0.625, 2: 0.75}
    (contrast,) = found.contrasts
    assert contrast.seeds == [0, 1, 2] and contrast.reference == "lambda_critic=0.95"
    assert contrast.difference.mean == pytest.approx(7 / 3 / PROBLEMS)
    assert contrast.sign_flip.p == 0.25 and contrast.p_holm == contrast.difference.p
    assert contrast.improvement == 1
    assert found.problem_level == "seeds and, within them, problems with their results"
    assert any(
        line.startswith("fewer than 5 seeds (lambda_critic=0.95 3") for line in warnings(found)
    )
    assert any(line.startswith("n = 3 detects a difference of") for line in warnings(found))


def test_the_order_of_the_reference_turns_the_sign(sets):
    forth = run(sets, names=["ppo", "vcppo"], reference="ppo").contrasts[0]
    back = run(sets, names=["ppo", "vcppo"], reference="vcppo").contrasts[0]
    assert forth.difference.mean == -back.difference.mean
    assert forth.difference.p == back.difference.p
    with pytest.raises(ValueError, match="--reference: 'x' is not one of ppo, vcppo"):
        run(sets, names=["ppo", "vcppo"], reference="x")


def test_arms_that_differ_in_much_have_the_name_of_their_directory(tmp_path):
    write_seed(tmp_path / "a" / "seed_0", 0, 1)
    directory = write_seed(tmp_path / "b" / "seed_0", 0, 1)
    config = yaml.safe_load((directory / "config.yaml").read_text())
    config["model"]["init_args"]["advantage"] = {"gamma": 0.9, "lambda_critic": 0.5, "other": 1}
    (directory / "config.yaml").write_text(yaml.safe_dump(config))
    found = run([tmp_path / "a", tmp_path / "b"])
    assert [arm.name for arm in found.arms] == ["a", "b"]
    assert set(found.settings) == {
        "model.advantage.gamma",
        "model.advantage.lambda_critic",
        "model.advantage.other",
    }


def test_what_cannot_be_paired_is_refused_in_a_line_that_names_the_runs(sets, tmp_path):
    other = write_seed(tmp_path / "other" / "seed_0", 0, 3, 0.9, problems=["x"] * PROBLEMS)
    with pytest.raises(
        ValueError, match=r"ppo/seed_0 and .*other/seed_0 cannot be paired: eval/acc"
    ):
        run([sets[0], other])
    start = write_seed(tmp_path / "start" / "seed_0", 0, 3, 0.9, actor="elsewhere/actor")
    with pytest.raises(ValueError, match=r"cannot be paired: actor is elsewhere/actor and starts/"):
        run([sets[0], start])
    alone = write_seed(tmp_path / "alone" / "seed_7", 7, 3, 0.9)
    with pytest.raises(ValueError, match="no seed in common: seeds 7 and seeds 0, 1, 2"):
        run([sets[0], alone])
    twice = write_seed(tmp_path / "ppo_again" / "seed_0", 0, 3, 0.95)
    with pytest.raises(ValueError, match=r"ppo/seed_0 and .* have the same settings and seed 0"):
        run([sets[0], twice])
    with pytest.raises(ValueError, match="nowhere: no such run"):
        run([tmp_path / "nowhere"])


def test_a_recorded_start_counts_more_than_its_place(sets, tmp_path):
    moved = write_seed(tmp_path / "moved" / "seed_0", 0, 3, 0.9, actor="elsewhere/actor")
    for directory in (moved, sets[0] / "seed_0"):
        (directory / START).write_text(json.dumps({"actor": "0123456789abcdef"}))
    assert len(run([sets[0], moved]).contrasts) == 1
    (moved / START).write_text("[]")
    with pytest.raises(ValueError, match=r"start.json: expected a JSON object"):
        run([sets[0], moved])


def test_a_fingerprint_changes_with_the_weights(tmp_path):
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(bytes(100_000))
    before = fingerprint(str(tmp_path))
    assert fingerprint(str(tmp_path)) == before and len(before) == 16
    weights.write_bytes(bytes(99_999) + b"1")
    assert fingerprint(str(tmp_path)) != before
    settings = {"actor": "org/model", "critic": {"b": 1, "a": 2}, "reference": None}
    assert start_fingerprints(settings) == {"actor": "org/model", "critic": '{"a": 2, "b": 1}'}


def test_policy_rollouts_tokens_and_seconds_are_axes(tmp_path):
    write_seed(tmp_path / "a" / "seed_0", 0, 4, 1.0)
    write_seed(tmp_path / "b" / "seed_0", 0, 4, 0.9, pretraining=2)
    paths = [tmp_path / "a", tmp_path / "b"]
    metric = "rollout/accuracy"
    ends = {a: run(paths, axis=a, metric=metric).end for a in ("rollouts", "policy_rollouts")}
    assert ends == {"rollouts": 6, "policy_rollouts": 4}
    assert run(paths, axis="seconds", metric=metric).end == 24
    assert run(paths, axis="tokens", metric=metric).end == 1200
    found = run(paths, axis="policy_rollouts", metric=metric)
    values = [arm.values[0] for arm in found.arms]
    assert values == pytest.approx([0.25, 0.4])  # rollouts 1 to 4, and 2 to 6
    assert any("at 4 policy rollouts, where" in line for line in warnings(found))
    with pytest.raises(ValueError, match=r"a/seed_0: no eval/accuracy up to 4 policy rollouts; "):
        run(paths, axis="policy_rollouts")


def test_a_collapse_is_a_fall_of_both_accuracy_and_length(tmp_path):
    for name, changes in (("kept", {}), ("fell", {"accuracy": 0.0})):
        write_seed(tmp_path / name / "seed_0", 0, 4, float(name == "kept"), **changes)
    rows = list(csv.DictReader((tmp_path / "fell/seed_0/metrics.csv").open()))
    for row, length in zip(rows, (100, 30, 30, 30, 30, 30), strict=True):
        row["rollout/response_length"] = length
        row["rollout/accuracy"] = 0.1 if length == 100 else 0.0
    write_csv(tmp_path / "fell/seed_0/metrics.csv", rows)
    found = run([tmp_path / "kept", tmp_path / "fell"])
    assert [arm.collapsed for arm in found.arms] == [{0: False}, {0: True}]


def test_without_records_problems_are_binomial(tmp_path):
    for arm in range(2):
        for seed in range(2):
            directory = tmp_path / f"{arm}" / f"seed_{seed}"
            write_seed(directory, seed, 4 + arm, float(arm), records=False)
    found = run([tmp_path / "0", tmp_path / "1"])
    assert "results of single problems are missing" in found.problem_level
    assert found.arms[0].bootstrap.low < 0.5 < found.arms[0].bootstrap.high
    assert any(
        "vary less over seeds (0) than by the choice of problems" in line
        for line in warnings(found)
    )


# From rows


def write_rows(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_committed_rows_give_the_published_numbers():
    found = run([ROOT / "docs/experiments/ablation.csv"], reference="vcppo", problems=512)
    holm = {contrast.arm: contrast.p_holm for contrast in found.contrasts}
    if len(holm) == 11:  # as long as the rows are those of the first ablation
        assert holm["ppo"] == pytest.approx(8.0e-4, rel=0.01)
        assert holm["ppo_value_pretraining"] == pytest.approx(0.011, rel=0.01)
        assert holm["vcppo_lambda_0.95"] == pytest.approx(0.077, rel=0.01)
    by_name = {arm.name: arm for arm in found.arms}
    assert by_name["vcppo"].iqm == pytest.approx(0.712, abs=5e-4)
    assert sum(by_name["ppo"].collapsed.values()) == 5
    assert any(line.startswith("grpo: seed 3, 4 was run after") for line in warnings(found))


def test_rows_of_one_arm_and_seed_need_more_columns(tmp_path):
    rows = [{"arm": "a", "rate": r, "seed": 0, "accuracy": 0.5} for r in (1, 2)]
    path = write_rows(tmp_path / "rows.csv", rows)
    with pytest.raises(ValueError, match=r"rows.csv:2 and .*rows.csv:3 have the same settings"):
        run([path])
    assert [arm.name for arm in run([path], by=["arm", "rate"]).arms] == ["rate=1", "rate=2"]
    with pytest.raises(ValueError, match="no column lambda; expected rows of runs with seed"):
        run([path], by=["lambda"])


def test_rows_with_another_start_or_seed_are_refused(tmp_path):
    rows = [
        {"arm": arm, "seed": 0, "accuracy": 0.5, "cold_start_accuracy": start}
        for arm, start in (("a", 0.1), ("b", 0.2))
    ]
    with pytest.raises(ValueError, match=r"cannot be paired: cold_start_accuracy is 0\.2 and 0\.1"):
        run([write_rows(tmp_path / "rows.csv", rows)])
    rows[0]["seed"] = "x"
    with pytest.raises(ValueError, match=r"rows.csv:2: seed: expected an integer, got 'x'"):
        run([write_rows(tmp_path / "rows.csv", rows)])


@pytest.mark.parametrize(
    ("changes", "point", "message"),
    [
        ({"accuracy": 50}, {}, r"rows.csv:2: accuracy: expected a share in \[0, 1\], got '50'"),
        ({"accuracy": -1}, {}, r"rows.csv:2: accuracy: expected a share in \[0, 1\], got '-1'"),
        ({"accuracy": "x"}, {}, r"rows.csv:2: accuracy: expected a share in \[0, 1\], got 'x'"),
        ({"problems": -5}, {}, "rows.csv:2: problems: expected a whole number >= 0, got '-5'"),
        ({"problems": 1e300}, {}, r"rows.csv:2: problems: expected a whole number .*1e\+300"),
        ({"problems": "inf"}, {}, "rows.csv:2: problems: expected a whole number >= 0, got 'inf'"),
        ({"note": "x" * 140_000}, {}, "rows.csv: expected a CSV file of runs: field larger"),
        ({}, {"rollout": "inf"}, "_curves.csv:2: rollout: expected a whole number >= 0, got 'inf'"),
        ({}, {"rollout": "abc"}, "_curves.csv:2: rollout: expected a whole number >= 0, got 'abc'"),
        ({}, {"policy_rollout": "x"}, "_curves.csv:2: policy_rollout: expected a whole number"),
        ({}, {"accuracy": 60}, "_curves.csv:2: accuracy: expected a share"),
    ],
)
def test_wrong_cells_are_refused_by_file_row_and_column(tmp_path, changes, point, message):
    row = {"arm": "a", "seed": 0, "accuracy": 0.5, "problems": 8} | changes
    points = {"arm": "a", "seed": 0, "rollout": 1, "accuracy": 0.5} | point
    path = write_rows(tmp_path / "rows.csv", [row])
    write_rows(tmp_path / "rows_curves.csv", [points])
    with pytest.raises(ValueError, match=rf"^[^\n]*{message}[^\n]*$"):
        run([path])


def test_a_search_seed_and_unequal_numbers_are_told(tmp_path):
    rows = [{"arm": "a", "seed": s, "accuracy": 0.5 + s / 100} for s in range(6)]
    rows += [{"arm": "b", "seed": s, "accuracy": 0.6 - s / 100} for s in range(5)]
    path = write_rows(tmp_path / "rows.csv", rows)
    told = warnings(run([path], search_seeds=[2, 100]))
    assert "seed 2 was used to choose settings, too" in told
    assert any(line.startswith("arms have different numbers of seeds (a 6, b 5)") for line in told)
    assert not any("was run after" in line for line in told)
    assert any("the start is unknown" in line for line in told)


# Output


def test_the_command_writes_four_files_and_reads_its_own_rows(sets, tmp_path, capsys):
    directory = tmp_path / "out"
    names = ["--names", "ppo", "vc|ppo", "--reference", "ppo"]
    command.main([*map(str, sets), *names, "--output", str(directory)])
    text = capsys.readouterr().out
    assert "paired difference from ppo" in text and "vc|ppo" in text
    assert sorted(p.name for p in directory.iterdir()) == [
        f"compare.{ending}" for ending in ("csv", "html", "json", "md")
    ]
    found = json.loads((directory / "compare.json").read_text())
    keys = {"arm", "reference", "n", "mean", "ci_low", "ci_high", "p", "p_holm", "p_sign_flip"}
    assert keys <= found["contrasts"][0].keys()
    assert found["arms"][0]["values"] == [0.25, 0.375, 0.5] and found["warnings"]
    assert "vc&#124;ppo" in (directory / "compare.md").read_text()
    html = (directory / "compare.html").read_text()
    assert 'http-equiv="Content-Security-Policy"' in html and "vc|ppo" in html
    again = run([directory / "compare.csv"], reference="ppo")
    assert again.contrasts[0].difference.mean == pytest.approx(found["contrasts"][0]["mean"])


def test_nothing_is_written_when_a_page_cannot_be(sets, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    with pytest.raises(ImportError, match="needs plotly"):
        command.main([*map(str, sets), "--output", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_a_mistake_ends_in_one_line(sets, capsys):
    with pytest.raises(SystemExit) as end:
        run_program("compare", sets[0], sets[1], "--reference", "vapo")
    assert end.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and "--reference: 'vapo' is not one of lambda_critic=0.95" in lines[0]


def test_it_starts_without_torch(sets):
    code = (
        "import sys; from lightning_vcppo.cli.commands import compare;"
        f"compare.main({[str(path) for path in sets]!r});"
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()


def test_a_band_is_between_the_seeds_and_has_no_width_for_one():
    one = curves.band([[(0.0, 0.0), (2.0, 1.0)]], 2)
    assert one is not None and one.middle == one.low == one.high == [0, 1]
    many = curves.band([[(0.0, y), (4.0, y)] for y in (0.0, 1.0, 2.0)], 3)
    assert many is not None
    assert many.places[-1] <= 3 and many.middle[0] == 1
    assert 0 <= many.low[0] < 1 < many.high[0] <= 2
    assert curves.band([[], []], 1) is None


def test_numbers_are_written_with_their_units(sets):
    found = run(sets)
    assert output.arm_rows(found)[0][2] == "37.5"
    assert output.contrast_rows(found)[0][2] == "+29.2"
    lengths = run(sets, metric="rollout/response_length")
    assert output.arm_rows(lengths)[0][2] == "100"
    assert lengths.problem_level.startswith("only seeds: ")
    assert not math.isnan(lengths.arms[0].iqm)


def test_two_names_for_three_arms_are_refused(sets):
    runs = read(sets, Options())
    with pytest.raises(ValueError, match=r"--names: expected 2 names, for lambda_critic=0\.95"):
        group(runs, ["a"])
    with pytest.raises(ValueError, match="--names: expected different names, got a, a"):
        group(runs, ["a", "a"])


def test_equal_results_have_no_interval_and_say_so(tmp_path):
    rows = [
        {"arm": arm, "seed": seed, "accuracy": 0.0, "problems": 4}
        for arm in ("one", "other")
        for seed in range(5)
    ]
    options = Options()
    found = compare(read([write_rows(tmp_path / "rows.csv", rows)], options), options)
    of_arms, of_contrasts = output.arm_rows(found), output.contrast_rows(found)
    assert [row[2:6] for row in of_arms] == [["0.0", "", "0.0", ""]] * 2
    assert of_contrasts[0][2:5] == ["0.0", "", ""]
    (arm, _), (contrast,) = (json.loads(output.to_json(found))[k] for k in ("arms", "contrasts"))
    ends = [arm[f"{name}_{end}"] for name in ("ci", "bootstrap") for end in ("low", "high")]
    assert ends == [None] * 4 == [contrast[f"ci_{end}"] for end in ("low", "high")] * 2
    told = "one, other: all seeds have the same eval/accuracy, so their spread is unknown"
    assert any(told in warning for warning in warnings(found))


def test_metrics_in_lightning_logs_are_compared_and_named(sets):
    for directory in sets[0].iterdir():
        place = directory / "lightning_logs" / "version_0"
        place.mkdir(parents=True)
        (directory / "metrics.csv").rename(place / "metrics.csv")
    found = run(sets)
    assert found.arms[0].values == {0: 0.25, 1: 0.375, 2: 0.5}
    told = "seed_0: The metrics are those of lightning_logs/version_0/metrics.csv"
    assert any(told in warning for warning in warnings(found))
