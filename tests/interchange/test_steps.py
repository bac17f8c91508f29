"""Dumps over training steps: what `vcppo report` reads off them, and what it says is missing."""

from __future__ import annotations

import json
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lightning_vcppo.interchange.steps import is_dump, read_dumps, step_in
from lightning_vcppo.report.summary import profiles, reach
from tests.support import dumps
from tests.support.tiny_runs import ROOT, run_program


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def with_values(n: int, values: list[float], reward: float) -> dict[str, Any]:
    return dumps.verl(n) | {"step": 1, "values": values, "score": reward}


@pytest.fixture(scope="module")
def verl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory as `trainer.rollout_data_dir` leaves it, after three steps."""
    directory = tmp_path_factory.mktemp("verl")
    for step in (9, 10, 11):
        rows = [dumps.verl(n) | {"step": step} for n in range(4)]
        for row in rows[: step - 9]:  # gets worse
            row["score"] = -1.0
        write(directory / f"{step}.jsonl", rows)
    return directory


def test_steps_that_are_texts_are_numbers(tmp_path: Path) -> None:
    rows = [dumps.trl(n) | {"step": step} for step in ("10", "9") for n in range(4)]
    run = read_dumps(write(tmp_path / "completions.jsonl", rows), "trl")
    assert run.curve("rollout/accuracy")[0] == [9, 10]
    with pytest.raises(ValueError, match="step: expected a whole number, got 'x'"):
        read_dumps(write(tmp_path / "other.jsonl", [dumps.trl(0) | {"step": "x"}]), "trl")


class Text(HTMLParser):
    """The text outside scripts and styles."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text, self._hidden = "", False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self._hidden = tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        self._hidden = False

    def handle_data(self, data: str) -> None:
        self.text += "" if self._hidden else data


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("12.jsonl", 12),
        ("train_data_step3.jsonl", 3),
        ("step_4/rank_1/traces.jsonl", 4),
        ("completions_00010.parquet", 10),
        ("v2/7.jsonl.gz", 7),
        ("rollouts.jsonl", None),
    ],
)
def test_the_step_is_in_the_name(name: str, step: int | None) -> None:
    assert step_in(Path(name)) == step


def test_verls_dumps_are_a_run(verl: Path) -> None:
    run = read_dumps(verl, "verl")
    assert run.curve("rollout/accuracy") == ([9, 10, 11], [0.75, 0.5, 0.5])
    assert run.curve("rollout/reward_mean")[1] == [0.5, 0.0, 0.0]
    characters = sum(map(len, dumps.REPLIES)) / 4
    assert run.curve("rollout/response_characters")[1] == [characters] * 3
    assert run.trainer == "verl" and [s["correct"] for s in run.samples] == [
        True,
        True,
        False,
        False,
    ]
    assert [note.partition(":")[0].partition(".")[0] for note in run.notes] == [
        "Lengths are in characters",
        "The dumps do not record which responses are truncated",
        "The dumps have no values of a critic",
    ]


def test_truncation_and_token_ids_are_read(tmp_path: Path) -> None:
    for step in (1, 2):
        rows = [dumps.prime_rl(n) for n in range(4)]
        write(tmp_path / f"step_{step}" / "rank_0" / "traces.jsonl", rows)
    run = read_dumps(tmp_path, "prime")
    tokens = sum(len(reply.encode()) for reply in dumps.REPLIES) / 4
    assert run.curve("rollout/response_length") == ([1, 2], [tokens] * 2)
    assert run.curve("rollout/truncation_rate")[1] == [0.25] * 2
    assert [s["finished"] for s in run.samples] == [True, True, True, False]


def test_a_tokenizer_counts_what_has_no_ids(verl: Path) -> None:
    run = read_dumps(verl, "verl", count_tokens=lambda texts: [len(text) // 2 for text in texts])
    expected = sum(len(reply) // 2 + 1 for reply in dumps.REPLIES) / 4  # with the end of text
    assert run.curve("rollout/response_length")[1] == [expected] * 3


def test_values_are_compared_with_rewards(tmp_path: Path) -> None:
    given = [([0.5] * 10, 1.0), ([-0.25] * 20, -1.0), ([0.0, 1.0], 1.0)]
    write(tmp_path / "1.jsonl", [with_values(n, *row) for n, row in enumerate(given)])
    run = read_dumps(tmp_path, "run")
    values = np.concatenate([v for v, _ in given])
    returns = np.concatenate([np.full(len(v), r) for v, r in given])
    row = run.rows[1]
    error = returns - values
    assert row["critic/bias"] == pytest.approx(error.mean())
    assert row["critic/value_error"] == pytest.approx(np.abs(error).mean())
    assert row["critic/r2"] == pytest.approx(1 - (error**2).mean() / returns.var())
    assert row["critic/explained_variance"] == pytest.approx(1 - error.var() / returns.var())
    assert row["rollout/response_length"] == pytest.approx(32 / 3)
    ((_, wrong),) = profiles(run, "value", "incorrect")
    assert wrong == [-0.25] * 10
    ((_, right),) = profiles(run, "bias", "correct")
    assert right[0] == pytest.approx((0.5 + 0.0 - 2) / 2) and right[1] == pytest.approx(-0.5)
    assert reach(run) is None  # dumps do not say their lambda


def test_validations_are_kept_apart(verl: Path, tmp_path: Path) -> None:
    write(tmp_path / "train_data_step1.jsonl", [dumps.nemo_rl(n) for n in range(4)])
    write(tmp_path / "val_data_step1.jsonl", [dumps.nemo_rl_validation(n) for n in range(4)])
    run = read_dumps(tmp_path, "nemo")
    (validation,) = run.evaluations
    assert (validation.name, validation.step, validation.problems) == ("validation", 1, 2)
    assert validation.accuracy == 0.75 and set(run.rows) == {1}


def test_what_is_no_dump_over_steps_is_named(tmp_path: Path) -> None:
    write(tmp_path / "rollouts.jsonl", [dumps.plain(0)])
    with pytest.raises(
        ValueError, match=r"rollouts.jsonl: no training step; expected a field `step`"
    ):
        read_dumps(tmp_path, "run")
    write(tmp_path / "rollouts.jsonl", [dumps.plain(0) | {"step": 3, "reward": None}])
    with pytest.raises(ValueError, match="no response has a reward; --reward_field=NAME"):
        read_dumps(tmp_path, "run")
    write(tmp_path / "rollouts.jsonl", [dumps.plain(0) | {"step": 3}, {"step": 3}])
    assert "Skipped 1 rows" in read_dumps(tmp_path, "run").notes[0]
    later = write(tmp_path / "4.jsonl", [{"step": 4}, {"step": 4}])
    assert "Skipped 3 rows" in read_dumps(tmp_path, "run").notes[0]
    with pytest.raises(ValueError, match=r"4\.jsonl: no responses; 4\.jsonl:1: "):
        read_dumps(later, "run")
    assert is_dump(tmp_path) and is_dump(tmp_path / "rollouts.jsonl")
    (tmp_path / "config.yaml").write_text("")
    assert not is_dump(tmp_path)  # a run of ours, which needs its metrics.csv


def test_the_page_says_what_is_missing(verl: Path, tmp_path: Path) -> None:
    values = [with_values(n, [0.5] * (n + 5), 1.0 - 2 * (n % 2)) for n in range(4)]
    with_critic = write(tmp_path / "own" / "1.jsonl", values).parent
    run_program("report", verl, with_critic, "--output", tmp_path / "page.html")
    page = Text((tmp_path / "page.html").read_text()).text
    for words in (
        "training steps 9 to 11, dumped by verl",
        "The dumps do not record which responses are truncated.",
        "own: of the reward, 56.02% with 0.9",
        "Not shown: no files of a validation (val*) in these runs.",
        "Not shown: Advantage by position (the dumps have no advantages).",
        "Accuracy by length",
        "Bias by position",
        r"\boxed{10}",
    ):
        assert words in page, words


def test_dumps_are_reported_without_torch(verl: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from lightning_vcppo.cli import main;"
        f"sys.argv = ['vcppo', 'report', {str(verl)!r}, '--output', 'page.html'];"
        "main.run(); assert not {'torch', 'lightning', 'transformers'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
