"""`vcppo critic compare`: critics are fitted, ranked, and judged against continuations."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from lightning_vcppo.critic_lab.values import measure_critic
from tests.support.lab_rollouts import write_rollouts
from tests.support.tiny_runs import run_program

FLAGS = ("--max_epochs=2", "--mini_batch_size=16", "--accelerator=cpu", "--devices=1")
ANSWER, SIDE = "answer:lr=0.01", "side:side_width=16,lr=0.01"


@pytest.fixture(scope="module")
def rollouts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rollouts(tmp_path_factory.mktemp("lab") / "rollouts.jsonl")


def compare(rollouts: Path, actor: Path, output: Path, *arguments: object) -> dict[str, Any]:
    given = ("critic", "compare", rollouts, "--model", actor, "--output", output)
    run_program(*given, *arguments, *FLAGS)
    found: dict[str, Any] = json.loads((output / "compare.json").read_text())
    return found


@pytest.fixture(scope="module")
def compared(
    rollouts: Path, tiny_actor: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    output = tmp_path_factory.mktemp("lab") / "compared"
    of_actor = ("--actor", tiny_actor, "--reward=tests.support.lab_rollouts.begins_with_y")
    numbers = ("--prefixes=24", "--continuations=3", "--lambdas", 0.5, 0.9, 1)
    critics = ("--critics", ANSWER, SIDE)
    return output, compare(rollouts, tiny_actor, output, *critics, *of_actor, *numbers)


def test_critics_are_ranked_and_judged_by_continuations(
    compared: tuple[Path, dict[str, Any]],
) -> None:
    output, found = compared
    ranked = [fit["measures"]["r2"] for fit in found["critics"]]
    assert ranked == sorted(ranked, reverse=True) and len(ranked) == 2
    first = found["critics"][0]["truth"]
    assert first["states"] == 24 and first["continuations"] == 3
    assert [of["lam"] for of in first["lambdas"]] == [0.5, 0.9, 1.0]
    assert first["lambdas"][-1]["errors"]["reaching_gradient"] == pytest.approx(0, abs=1e-9)
    own = found["critics"][0]["truth"]["lambda_actor"]
    assert found["lambda_actor"]["recommended"] == own["recommended"]
    assert found["lambda_actor"]["label"].startswith("failed its test")
    # Both are judged on the same continuations, so they agree on what the policy reaches.
    means = {fit["truth"]["values"]["mean"] for fit in found["critics"]}
    assert len(means) == 1 and len((output / "continuations.jsonl").read_text().split("\n")) == 26


def test_page_and_tables_have_the_true_errors(compared: tuple[Path, dict[str, Any]]) -> None:
    output, found = compared
    page = (output / "compare.html").read_text()
    assert "Content-Security-Policy" in page and SIDE in page and "Advantages by lambda" in page
    assert "True bias of V by position" in page and found["lambda_actor"]["reason"][:20] in page
    with (output / "compare.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["critic"] for row in rows] == [fit["name"] for fit in found["critics"]]
    assert all(row["true_bias"] and row["lambda_actor"] for row in rows)
    with (output / "compare_truth.csv").open() as file:
        true = list(csv.DictReader(file))
    assert {row["of"] for row in true} == {"V", "A"}
    assert {row["position"] for row in true} == {"all", *(f"{e}/8" for e in range(8))}
    assert {row["lambda"] for row in true} == {"", "0.5", "0.9", "1.0"}


def test_without_an_actor_lambda_is_not_decided_and_fits_are_taken_over(
    compared: tuple[Path, dict[str, Any]], rollouts: Path, tiny_actor: Path
) -> None:
    output, _ = compared
    before = (output / "0_answer_lr_0.01" / "fit.json").stat().st_mtime_ns
    found = compare(rollouts, tiny_actor, output, "--critics", ANSWER)
    assert (output / "0_answer_lr_0.01" / "fit.json").stat().st_mtime_ns == before
    assert found["ranked"] is not any("no ranking" in told for told in found["warnings"])
    for warning in found["warnings"]:
        assert warning in (output / "compare.html").read_text()
    assert found["lambda_actor"]["recommended"] is None
    assert "name the policy with --actor" in found["lambda_actor"]["reason"]
    assert "truth" not in found["critics"][0]


def test_a_fitted_side_critic_is_read_beside_its_actor(
    compared: tuple[Path, dict[str, Any]], rollouts: Path, tiny_actor: Path
) -> None:
    output, _ = compared
    (directory,) = output.glob("1_side*/critic")
    assert "attach(actor)" in (directory / "README.md").read_text()
    measures, _ = measure_critic(str(directory), str(rollouts), actor=str(tiny_actor))
    assert measures.responses == 48
    with pytest.raises(ValueError, match="a side critic reads an actor; name it with --actor"):
        measure_critic(str(directory), str(rollouts))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--critics", "mse", "--prefixes=9"), "--prefixes: needs --actor"),
        (("--critics", "side"), "side reads the actor's activations; name the actor with --actor"),
        (("--critics", "mse", "--actor=ACTOR"), "boxed contradicts the stored reward of"),
        (("--critics", "mse", "--actor=ACTOR", "--lambdas", 1, 1), "two or more different numbers"),
        (("--critics", "mse", "--actor=ACTOR", "--continuations=1"), "--continuations: expected"),
        (("--critics", "mse", "--split=3"), "--split"),
    ],
)
def test_what_cannot_be_compared_ends_in_one_line_before_any_fit(
    arguments: tuple[Any, ...],
    message: str,
    rollouts: Path,
    tiny_actor: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = [str(a).replace("ACTOR", str(tiny_actor)) for a in arguments]
    with pytest.raises(SystemExit):
        compare(rollouts, tiny_actor, tmp_path / "out", *given)
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "Traceback" not in line and message in line
    assert not [*tmp_path.glob("out/*/fit.log")]


def test_rollouts_without_answers_have_no_answer_critic(
    tiny_actor: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    without = write_rollouts(tmp_path / "without.jsonl", answer="")
    with pytest.raises(SystemExit):
        compare(without, tiny_actor, tmp_path / "out", "--critics", "mse", "answer")
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "--critics: answer: " in line and "12 of 12 prompts have no stored answer" in line
