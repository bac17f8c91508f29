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

import pytest

from lightning_vcppo import report
from lightning_vcppo.report.drawing import spec
from lightning_vcppo.report.figures import sections
from lightning_vcppo.report.page import render
from lightning_vcppo.report.reading import read_run, read_runs
from tests.support.report_runs import (
    HOSTILE,
    metrics,
    response,
    write_csv,
    write_jsonl,
    write_run,
)
from tests.support.tiny_runs import ROOT, run_program


def read(directory):
    return read_run(directory, directory.name)


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
    directory = tmp_path_factory.mktemp("runs")
    hostile = write_run(directory / "hostile", pretraining=0, hostile=HOSTILE)
    return [read(write_run(directory / "good")), replace(read(hostile), name=HOSTILE)]


@pytest.fixture(scope="module")
def html(runs):
    return render(runs)


def test_a_page_has_every_figure_with_its_data(html):
    page = Page(html)
    anchors = {attrs["id"] for tag, attrs in page.tags if tag == "figure"}
    assert anchors == {
        *("accuracy", "reward_mean", "response_length", "truncation_rate", "explained_variance"),
        *("r2", "pretraining_r2"),
        *("pretraining_loss", "pretraining_explained_variance", "calibration"),
        *("value_by_position", "advantage_by_position", "bias_by_position", "right_and_wrong"),
        *("reward_decay", "entropy", "approx_kl"),
    }
    assert "Not shown" not in page.text
    places = [attrs["data-plot"] for _, attrs in page.tags if attrs.get("class") == "plot"]
    assert places == [str(i) for i in range(len(page.plots))]
    for plot in page.plots:
        assert plot["data"] and all(trace["x"] and trace["y"] for trace in plot["data"])
    accuracy = page.plots[0]
    names = [trace["name"] for trace in accuracy["data"]]
    assert {"good", "good: held-out"} < set(names) and len({*names}) == 4
    (shade,) = accuracy["layout"]["shapes"]
    assert (shade["x0"], shade["x1"]) == (0.5, 4.5)
    for words in (
        "0.0 % → 40.0 %",
        "above 0.3, our rule of thumb",
        "rule of thumb is above 0.3",
        "avg@k",
    ):
        assert words in page.text


def test_plots_are_valid_to_plotly(html):
    graph_objects = pytest.importorskip("plotly.graph_objects")
    for plot in Page(html).plots:
        figure = graph_objects.Figure(plot)  # refuses a property that it does not know
        assert len(figure.data) == len(plot["data"])


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
        "Not shown: Value pretraining: loss (no run has a measure of value pretraining).",
        "Not shown: Calibration of the critic (no diagnostics/calibration.jsonl).",
        "Not shown: Bias by position (no diagnostics/positions.jsonl).",
        "Not shown: Reach of the reward (neither config.yaml nor diagnostics/ names lambdas).",
        "Not shown: no evaluation/*.jsonl in this run.",
        "not shown, no config.yaml.",
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


def test_the_command_writes_the_page(tmp_path, capsys):
    directory = write_run(tmp_path / "run")
    run_program("report", directory)
    assert str(directory / "report.html") in capsys.readouterr().out
    first = (directory / "report.html").read_bytes()
    run_program("report", directory, "--output", tmp_path / "new" / "page.html")
    assert (tmp_path / "new" / "page.html").read_bytes() == first


def test_a_mistake_ends_in_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        run_program("report", tmp_path / "none")
    assert end.value.code == 2
    assert capsys.readouterr().err == (
        f"vcppo: error: {tmp_path / 'none'}: no such directory; expected the directory of a run\n"
    )


def test_half_a_surrogate_pair_is_drawn_as_a_question_mark(tmp_path):
    directory = write_run(tmp_path / "run")
    write_jsonl(directory / "evaluation" / "rollouts_99.jsonl", [response("why\ud800", True)])
    assert "why?" in report.write_report([directory]).read_text(encoding="utf-8")


def test_a_page_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    page = report.write_report([write_run(tmp_path / "run")])
    before = page.read_bytes()
    monkeypatch.setattr("os.replace", lambda *paths: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        report.write_report([tmp_path / "run"])
    assert page.read_bytes() == before


def test_without_plotly_it_says_what_to_install(tmp_path, monkeypatch):
    directory = write_run(tmp_path / "run")
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    with pytest.raises(ImportError, match=re.escape("pip install 'lightning-vcppo[report]'")):
        report.write_report([directory])
    assert not (directory / "report.html").exists()


def test_a_report_does_not_wait_for_torch(tmp_path):
    code = (
        "import sys; from lightning_vcppo.cli import main; sys.argv = ['vcppo', 'report', 'run'];"
        "main.run(); assert not {'torch', 'lightning', 'transformers'} & set(sys.modules)"
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


def test_levels_and_subjects_are_shown_after_the_first_and_the_last_evaluation(tmp_path):
    directory = write_run(tmp_path / "run")
    for step in (4, 8, 12):
        responses = [
            response(f"{i}?", i < step // 4, level=str(level), subject="<b>one</b>")
            for i, level in enumerate((10, 2, 2))
        ]
        write_jsonl(directory / "evaluation" / f"rollouts_{step:06d}.jsonl", responses)
    run = read(directory)
    assert run.evaluations[-1].groups == {("level", "2"): (2, 1), ("level", "10"): (1, 1)}
    text = "".join(Page(render([run])).text.split())
    table = text.partition("Years,levelsandsubjects")[2].partition("Sampleresponses")[0]
    shown = table.partition("avg@k")[2].split("runheld-out")
    assert shown == [
        "",
        *("4level220.0%", "4level101100.0%"),
        *("12level22100.0%", "12level101100.0%"),
    ]


def test_a_directory_of_seeds_is_not_taken_for_dumps(tmp_path, capsys):
    (tmp_path / "seed_0").mkdir()
    (tmp_path / "seed_0" / "config.yaml").touch()
    (tmp_path / "seed_0" / "log.txt").write_text("text")
    with pytest.raises(SystemExit) as end:
        run_program("report", tmp_path)
    assert end.value.code == 2
    assert f"{tmp_path}: holds the runs of several seeds; name them" in capsys.readouterr().err
