"""`vcppo critic`: a fit learns, resumes and is read back equal; critics are ranked."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForTokenClassification, AutoTokenizer

from lightning_vcppo.critic_lab.comparison import read_specs
from lightning_vcppo.critic_lab.running import fit_critic, measure_critic
from lightning_vcppo.models.critic import load_critic
from lightning_vcppo.settings import OptimizerSettings, ValueSettings
from tests.support.tiny_runs import run_program

FAST: dict[str, Any] = {
    "critic_optimizer": OptimizerSettings(lr=1e-2),
    "mini_batch_size": 16,
    "accelerator": "cpu",
    "devices": 1,
}


@pytest.fixture(scope="module")
def rollouts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows whose responses say in their second character whether they are right."""
    rng = random.Random(0)
    path = tmp_path_factory.mktemp("lab") / "rollouts.jsonl"
    with path.open("w") as file:
        for problem in range(12):
            for sample in range(4):
                good = (problem + sample) % 2 == 0
                text = ("y" if good else "n") * 4 + "x" * rng.randint(2, 6)
                row = {"prompt": f"{problem}?", "response": text, "reward": 1.0 if good else -1.0}
                file.write(json.dumps(row) + "\n")
    return path


@pytest.fixture(scope="module")
def fitted(rollouts: Path, tiny_actor: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lab") / "fit"
    fit_critic(str(rollouts), str(tiny_actor), str(folder), max_epochs=6, **FAST)
    return folder


def test_a_fit_learns_and_says_what_it_has_learnt(fitted: Path) -> None:
    written = json.loads((fitted / "fit.json").read_text())
    assert written["measures"]["r2"] > 0.3
    assert written["measures"]["auc"]["75%"] > 0.9
    card = (fitted / "critic" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers")
    assert f"| R^2 | {written['measures']['r2']:.3f} |" in card
    assert "vcppo export --ckpt_path critic --output nemo --layout nemo" in card
    assert (fitted / "critic" / "positions.png").stat().st_size > 1000


def test_transformers_alone_reads_the_same_values(fitted: Path) -> None:
    folder = str(fitted / "critic")
    ours = load_critic(folder, ValueSettings()).eval()
    plain = AutoModelForTokenClassification.from_pretrained(folder, num_labels=1).eval()
    ids_1L = torch.tensor([AutoTokenizer.from_pretrained(folder)("1? yyyxx")["input_ids"]])
    prompt, length = 2, ids_1L.shape[1] - 2
    with torch.no_grad():
        outputs_N1 = ours(ids_1L, torch.tensor([prompt]), torch.ones(1, length, dtype=torch.bool))
        # V of the state before each response token: the output at the token before it.
        expected_T = plain(ids_1L).logits[0, prompt - 1 : -1, 0]
    torch.testing.assert_close(ours.values(outputs_N1), expected_T)


def test_a_plain_token_classifier_keeps_its_head(fitted: Path, tmp_path: Path) -> None:
    plain = AutoModelForTokenClassification.from_pretrained(str(fitted / "critic"), num_labels=1)
    del plain.config.value_head
    plain.save_pretrained(tmp_path / "theirs")
    theirs = load_critic(str(tmp_path / "theirs"), ValueSettings())
    assert torch.equal(theirs.head.weight, plain.score.weight) and theirs.head.weight.any()


def test_an_interrupted_fit_resumes_bit_for_bit(
    fitted: Path, rollouts: Path, tiny_actor: Path, tmp_path: Path
) -> None:
    arguments = (str(rollouts), str(tiny_actor), str(tmp_path / "fit"))
    fit_critic(*arguments, max_epochs=2, **FAST)
    for written in ("critic", "fit.json"):  # as if it had been killed after two passes
        (tmp_path / "fit" / written).rename(tmp_path / written)
    fit_critic(*arguments, max_epochs=6, **FAST)
    both = [
        AutoModelForTokenClassification.from_pretrained(str(folder / "critic")).state_dict()
        for folder in (fitted, tmp_path / "fit")
    ]
    assert all(torch.equal(value, both[1][name]) for name, value in both[0].items())


def test_a_critic_that_is_there_is_judged(
    fitted: Path, rollouts: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    output = tmp_path / "judged.json"
    run_program("critic", "evaluate", fitted / "critic", rollouts, "--output", output)
    printed = capsys.readouterr().out
    assert "48 responses to 12 prompts" in printed and "Verdict: " in printed
    judged = json.loads(output.read_text())
    measures, _ = measure_critic(str(fitted / "critic"), str(rollouts))
    assert judged["measures"] == measures.as_json()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("hl_gaus", "no critic 'hl_gaus', did you mean hl_gauss"),
        ("mse:lrr=1", "no setting 'lrr'"),
        ("mse:lr", "expected key=value"),
        ("side", "cannot be fitted on stored rollouts alone"),
        ("nothing.yaml", "No such file"),
    ],
)
def test_a_wrong_spec_is_named(spec: str, message: str) -> None:
    with pytest.raises((ValueError, OSError)) as error:
        read_specs([spec])
    assert message in str(error.value).replace("; did", ", did").replace(" (did", ", did")


def test_specs_have_the_settings_of_their_names(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("value: {head: hl_gauss, num_bins: 21}\ncritic_optimizer: {lr: 1.0e-3}\n")
    huber, own = read_specs(["huber:huber_delta=0.5,lr=1e-4", str(path)])
    expected = {"value.loss": "huber", "value.huber_delta": 0.5, "critic_optimizer.lr": 1e-4}
    assert {k: float(v) if k.endswith("lr") else v for k, v in huber.settings.items()} == expected
    assert own.name == "own" and own.settings["value.num_bins"] == 21
    with pytest.raises(ValueError, match="mse is there twice"):
        read_specs(["mse", "mse"])


def test_equal_rewards_and_a_finished_output_are_refused(
    fitted: Path, rollouts: Path, tiny_actor: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="holds a fitted critic"):
        fit_critic(str(rollouts), str(tiny_actor), str(fitted), **FAST)
    rows = [json.loads(line) | {"reward": 1} for line in rollouts.read_text().splitlines()]
    equal = tmp_path / "equal.jsonl"
    equal.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match="all 48 responses have the reward 1"):
        fit_critic(str(equal), str(tiny_actor), str(tmp_path / "fit"), **FAST)


def test_critics_are_fitted_and_ranked(
    rollouts: Path, tiny_actor: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "compared"
    arguments = ("critic", "compare", rollouts, "--model", tiny_actor, "--output", output)
    flags = ("--max_epochs=2", "--mini_batch_size=16", "--accelerator=cpu", "--devices=1")
    run_program(*arguments, "--critics", "mse:lr=0.01", "hl_gauss:num_bins=21,lr=1e-5", *flags)
    found = json.loads((output / "compare.json").read_text())
    ranked = [fit["measures"]["r2"] for fit in found["critics"]]
    assert ranked == sorted(ranked, reverse=True) and len(ranked) == 2
    assert found["lambda_actor"]["recommended"] is None
    page = (output / "compare.html").read_text()
    assert "Content-Security-Policy" in page and "hl_gauss:num_bins=21,lr=1e-5" in page
    header, *rows = (output / "compare.csv").read_text().splitlines()
    assert header.startswith("critic,r2,") and len(rows) == 2
    assert "compare.html" in capsys.readouterr().out
