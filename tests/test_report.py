"""The report: what it reads, what it computes, and that its page is safe and whole."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from html import escape
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

from lightning_vcppo import __main__, report
from lightning_vcppo.report.drawing import spec
from lightning_vcppo.report.figures import sections
from lightning_vcppo.report.page import differences, render
from lightning_vcppo.report.reading import read_run, read_runs
from lightning_vcppo.report.summary import headline, profiles, reach, reliability, smooth, stages
from tests.report_runs import (
    HOSTILE,
    LENGTH,
    metrics,
    position,
    response,
    write_csv,
    write_jsonl,
    write_run,
)

ROOT = Path(__file__).parents[1]


def read(folder):
    return read_run(folder, folder.name)


# Reading


def test_rows_of_one_step_are_one_row(tmp_path):
    rows = [{"step": 2.0, "rollout/accuracy": 0.5}, {"step": 2.0, "eval/accuracy": 0.7}]
    write_csv(tmp_path / "metrics.csv", rows)
    assert read(tmp_path).rows[2] == {"step": 2, "rollout/accuracy": 0.5, "eval/accuracy": 0.7}


def test_half_written_last_lines_are_left_out(tmp_path):
    folder = write_run(tmp_path / "run")
    write_csv(folder / "metrics.csv", metrics(rollouts=5), end="")
    write_jsonl(folder / "diagnostics" / "positions.jsonl", [position(1)], end='\n{"rollout": 2')
    run = read(folder)
    assert max(run.rows) == 4
    assert [row["rollout"] for row in run.positions] == [1]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("metrics.csv", "", "metrics.csv: no complete row yet"),
        ("metrics.csv", "step,a\n1,x\n2,3\n", "metrics.csv:2: expected a row of numbers"),
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
    folder = write_run(tmp_path / "run")
    (folder / name).write_text(text)
    with pytest.raises(ValueError, match=re.escape(message)):
        read(folder)


def test_binary_metrics_are_refused(tmp_path):
    (tmp_path / "metrics.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"metrics\.csv: expected UTF-8 text"):
        read(tmp_path)


def test_runs_have_names_that_tell_them_apart(tmp_path):
    folders = [write_run(tmp_path / name) for name in ("a/demo", "b/demo", "ppo")]
    assert [run.name for run in read_runs(folders)] == [str(folders[0]), str(folders[1]), "ppo"]
    with pytest.raises(ValueError, match="once, got it twice"):
        read_runs([folders[0], folders[0]])


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
    folder = write_run(tmp_path / "run")
    graded = {"a": [True, True, True], "b": [False], "c": [True, False]}  # rates 1, 0 and 1/2
    rows = [response(p, c, index=p, finished=c) for p, cs in graded.items() for c in cs]
    write_jsonl(folder / "evaluation" / "rollouts_000012.jsonl", rows)
    last = read(folder).evaluations[-1]
    assert (last.problems, last.k, last.accuracy) == (3, 2, 0.5)
    assert last.truncation_rate == pytest.approx(2 / 6)
    standard_error = 0.5 / math.sqrt(3)  # the rates' standard deviation is 1/2
    assert last.interval == pytest.approx((0.0, min(1.0, 0.5 + 1.96 * standard_error)))


def test_logged_rates_and_intervals_are_taken_over(tmp_path):
    folder = write_run(tmp_path / "run")
    rows = metrics()
    rows[-1] |= {"eval/accuracy_low": 0.4, "eval/accuracy_high": 0.9, "eval/pass_at_k": 0.75}
    write_csv(folder / "metrics.csv", rows)
    first, last = read(folder).evaluations
    assert (last.interval, last.pass_at_k, last.maj_at_k) == ((0.4, 0.9), 0.75, None)
    assert first.pass_at_k is None


def test_sets_are_kept_apart_in_their_order(tmp_path):
    folder = write_run(tmp_path / "run")
    for step, right in ((4, False), (12, True)):
        rows = [response("x", right), response("y", True, evaluation_set="aime24")]
        write_jsonl(folder / "evaluation" / f"rollouts_{step:06d}.jsonl", rows)
    rows = metrics()
    rows[-1] |= {"eval/maj_at_k": 0.1, "eval/aime24/maj_at_k": 0.2}
    write_csv(folder / "metrics.csv", rows)
    found = read(folder).evaluations
    assert [(e.name, e.step, e.accuracy, e.maj_at_k) for e in found] == [
        *[("held_out", 4, 0.0, None), ("held_out", 12, 1.0, 0.1)],
        *[("aime24", 4, 1.0, None), ("aime24", 12, 1.0, 0.2)],
    ]


def test_a_run_starts_where_its_actor_was_evaluated(tmp_path):
    folder = write_run(tmp_path / "run")
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["model"]["init_args"]["actor"] = str(tmp_path / "cold_start" / "actor")
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    earlier = tmp_path / "cold_start" / "evaluation" / "updates_000600.jsonl"
    same = [json.loads(x) for x in (folder / "evaluation/rollouts_000004.jsonl").open()]
    write_jsonl(earlier, same)
    start, *others = read(folder).evaluations
    assert (start.step, start.source) == (0, "cold_start")
    assert [e.step for e in others] == [4, 12]
    write_jsonl(earlier, same[1:])  # other problems do not compare
    assert [e.step for e in read(folder).evaluations] == [4, 12]


# Numbers


def test_headline(tmp_path):
    folder = write_run(tmp_path / "run")
    head = headline(read(folder))
    assert head.accuracy.where == "5 held-out problems"
    assert (head.accuracy.before, head.accuracy.after) == (0.0, 2 / 5)
    assert head.explained_variance == 0.5  # of rollout 5, the first that the policy learns from
    assert (head.length.before, head.length.after) == (LENGTH, LENGTH)
    assert (head.rollouts, head.pretraining) == (12, 4)
    shutil.rmtree(folder / "evaluation")
    head = headline(read(folder))
    assert (head.accuracy.before, head.accuracy.after) == pytest.approx((0.25, 0.33))
    assert (head.accuracy.where, head.interval) == ("training rollouts", None)


def test_smooth_is_a_moving_average_over_a_tenth():
    assert smooth([1.0, 2.0]) == [1.0, 2.0]
    assert smooth([0.0, *[2.0] * 19]) == [0.0, 1.0, *[2.0] * 18]


def test_profiles_come_from_the_diagnostics_or_else_from_the_metrics(tmp_path):
    folder = write_run(tmp_path / "run")
    run = read(folder)
    assert profiles(run, "value")[0] == (1, pytest.approx([1 + i / 10 for i in range(10)]))
    assert math.isnan(profiles(run, "value", "incorrect")[0][1][9])
    assert profiles(run, "entropy") == []
    shutil.rmtree(folder / "diagnostics")
    rows = metrics()
    rows[0] |= {f"decay/value_decile_{i}": float(i) for i in range(9)}  # the tenth was empty
    write_csv(folder / "metrics.csv", rows)
    ((step, means),) = profiles(read(folder), "value")
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
    folder = write_run(tmp_path / "run")
    found = reach(read(folder))
    assert found.shares == pytest.approx((0.98**100, 1.0))  # as the monitor has seen it
    (folder / "diagnostics" / "positions.jsonl").unlink()
    assert reach(read(folder)).shares == pytest.approx((0.95**100, 1.0))  # as configured

    def with_advantage(**changes):
        config = yaml.safe_load((folder / "config.yaml").read_text())
        config["model"]["init_args"]["advantage"] |= changes
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        return reach(read(folder))

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


# The page


class Page(HTMLParser):
    """Tags with their attributes, the text outside scripts and styles, and the scripts."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags, self.text, self.scripts = [], "", []
        self._inside = None
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._inside = tag if tag in ("script", "style") else None

    def handle_endtag(self, tag):
        self._inside = None

    def handle_data(self, data):
        if self._inside == "script":
            self.scripts.append((self.tags[-1][1], data))
        elif self._inside is None:
            self.text += data.replace("\N{NO-BREAK SPACE}", " ")

    @property
    def plots(self):
        (data,) = [text for attrs, text in self.scripts if attrs.get("id") == "plots"]
        return json.loads(data)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs, the second hostile wherever it can be."""
    folder = tmp_path_factory.mktemp("runs")
    hostile = write_run(folder / "hostile", pretraining=0, hostile=HOSTILE)
    return [read(write_run(folder / "good")), replace(read(hostile), name=HOSTILE)]


@pytest.fixture(scope="module")
def html(runs):
    return render(runs)


def test_a_page_has_every_figure_with_its_data(html):
    page = Page(html)
    anchors = {attrs["id"] for tag, attrs in page.tags if tag == "figure"}
    assert anchors == {
        *("accuracy", "reward_mean", "response_length", "truncation_rate", "explained_variance"),
        *("pretraining_loss", "pretraining_explained_variance", "calibration"),
        *("value_by_position", "advantage_by_position", "bias_by_position", "right_and_wrong"),
        *("reward_decay", "entropy", "approx_kl"),
    }
    assert "Left out" not in page.text
    places = [attrs["data-plot"] for _, attrs in page.tags if attrs.get("class") == "plot"]
    assert places == [str(i) for i in range(len(page.plots))]
    for plot in page.plots:
        assert plot["data"] and all(trace["x"] and trace["y"] for trace in plot["data"])
    accuracy = page.plots[0]
    names = [trace["name"] for trace in accuracy["data"]]
    assert {"good", "good: held-out"} < set(names) and len({*names}) == 4
    (shade,) = accuracy["layout"]["shapes"]
    assert (shade["x0"], shade["x1"]) == (0.5, 4.5)
    for words in ("0.0 % → 40.0 %", "the critic is ready", "healthy is above 0.3", "avg@k"):
        assert words in page.text


def test_plots_are_valid_to_plotly(html):
    graph_objects = pytest.importorskip("plotly.graph_objects")
    for plot in Page(html).plots:
        graph_objects.Figure(plot)  # refuses a property that it does not know


def test_a_page_needs_nothing_from_outside(html):
    page = Page(html)
    for _, attrs in page.tags:
        assert not {"src", "srcset", "data", "action"} & set(attrs)
        assert attrs.get("href", "#").startswith("#")
    assert {tag for tag, _ in page.tags} & {"link", "iframe", "object", "embed", "img"} == set()
    assert "@import" not in html.split("</style>")[0] and "url(" not in html.split("</style>")[0]
    assert "://" not in page.text


def test_no_text_of_a_run_becomes_markup(html):
    page = Page(html)
    assert html.count("<script") == html.count("</script") == 3
    assert not [attrs for _, attrs in page.tags if "onerror" in attrs]
    assert page.text.count("document.title = 'owned'") >= 10  # shown, as text
    (data,) = [text for attrs, text in page.scripts if attrs.get("id") == "plots"]
    assert "<" not in data
    names = {trace.get("name") for plot in page.plots for trace in plot["data"]}
    assert escape(HOSTILE, quote=False) in names  # for plotly, too, reads markup


def test_what_is_missing_is_left_out_and_said(tmp_path):
    write_csv(tmp_path / "metrics.csv", metrics(pretraining=0))
    text = Page(render(read_runs([tmp_path]))).text
    for words in (
        "Left out: Value pretraining: loss (no run has pretrained its critic).",
        "Left out: Calibration of the critic (no diagnostics/calibration.jsonl).",
        "Left out: Bias by position (no diagnostics/positions.jsonl).",
        "Left out: Reach of the reward (neither config.yaml nor diagnostics/ names lambdas).",
        "Left out: no evaluation/*.jsonl in this run.",
        "left out, no config.yaml.",
    ):
        assert words in text


def test_a_cold_start_can_be_reported_on_its_own(tmp_path):
    rows = [{"step": float(i), "cold_start/loss": 1 / (1 + i)} for i in range(5)]
    write_csv(tmp_path / "metrics.csv", rows)
    first = sections(read_runs([tmp_path]))[0].figures[0]
    assert (first.title, first.panels[0].spec["layout"]["xaxis"]["title"]["text"]) == (
        "Cold start",
        "updates",
    )


def test_gaps_are_null_for_json():
    drawn = spec([{"x": [1, 2], "y": [math.nan, 2.0]}], x="", y="")
    assert drawn["data"][0]["y"] == [None, 2.0]


# The command


def vcppo(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["vcppo", *map(str, arguments)])
    __main__.run()


def test_the_command_writes_the_page(tmp_path, monkeypatch, capsys):
    folder = write_run(tmp_path / "run")
    vcppo(monkeypatch, "report", folder)
    assert str(folder / "report.html") in capsys.readouterr().out
    first = (folder / "report.html").read_bytes()
    vcppo(monkeypatch, "report", folder, "--output", tmp_path / "new" / "page.html")
    assert (tmp_path / "new" / "page.html").read_bytes() == first


def test_a_mistake_ends_in_one_line(tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit) as end:
        vcppo(monkeypatch, "report", tmp_path / "none")
    assert end.value.code == 2
    assert capsys.readouterr().err == (
        f"vcppo: error: {tmp_path / 'none'}: no such folder; expected the folder of a run\n"
    )


def test_without_plotly_it_says_what_to_install(tmp_path, monkeypatch):
    folder = write_run(tmp_path / "run")
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    with pytest.raises(ImportError, match=re.escape("pip install 'lightning-vcppo[report]'")):
        report.write_report([folder])
    assert not (folder / "report.html").exists()


def test_a_report_does_not_wait_for_torch(tmp_path):
    code = (
        "import sys; from lightning_vcppo import __main__; sys.argv = ['vcppo', 'report', 'run'];"
        "__main__.run(); assert not {'torch', 'lightning', 'transformers'} & set(sys.modules)"
    )
    write_run(tmp_path / "run")
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_a_browser_draws_it_and_runs_nothing_else(html, tmp_path):
    names = ("chromium", "chromium-browser", "google-chrome")
    browser = next(filter(None, map(shutil.which, names)), None)
    if browser is None:
        pytest.skip("no Chromium to open the page with")
    (tmp_path / "page.html").write_text(html, encoding="utf-8")
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    command += ["--disable-background-networking", "--no-first-run", "--virtual-time-budget=5000"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr", "--dump-dom"]
    command += [(tmp_path / "page.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "CONSOLE" not in done.stderr, done.stderr[-2000:]  # neither errors nor refusals
    drawn = re.findall(r'<div class="[^"]*\bjs-plotly-plot\b[^"]*"', done.stdout)
    assert len(drawn) == len(Page(html).plots)
    assert done.stdout.count('class="main-svg"') >= len(drawn)
    assert "<title>owned" not in done.stdout
