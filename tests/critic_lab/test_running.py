"""`vcppo critic fit` and `evaluate`: a fit learns, resumes and is read back equal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForTokenClassification, AutoTokenizer

from lightning_vcppo.critic_lab.running import fit_critic
from lightning_vcppo.critic_lab.values import measure_critic
from lightning_vcppo.models.critic import load_critic
from lightning_vcppo.settings import OptimizerSettings, ValueSettings
from tests.support.lab_rollouts import write_rollouts
from tests.support.tiny_runs import run_program

FAST: dict[str, Any] = {
    "critic_optimizer": OptimizerSettings(lr=1e-2),
    "mini_batch_size": 16,
    "accelerator": "cpu",
    "devices": 1,
}


@pytest.fixture(scope="module")
def rollouts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rollouts(tmp_path_factory.mktemp("lab") / "rollouts.jsonl")


@pytest.fixture(scope="module")
def fitted(rollouts: Path, tiny_actor: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("lab") / "fit"
    fit_critic(str(rollouts), str(tiny_actor), str(directory), max_epochs=6, **FAST)
    return directory


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
    directory = str(fitted / "critic")
    ours = load_critic(directory, ValueSettings()).eval()
    plain = AutoModelForTokenClassification.from_pretrained(directory, num_labels=1).eval()
    ids_1L = torch.tensor([AutoTokenizer.from_pretrained(directory)("1? yyyxx")["input_ids"]])
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
        AutoModelForTokenClassification.from_pretrained(str(directory / "critic")).state_dict()
        for directory in (fitted, tmp_path / "fit")
    ]
    assert all(torch.equal(value, both[1][name]) for name, value in both[0].items())


def test_a_critic_that_is_there_is_judged(
    fitted: Path, rollouts: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    output = tmp_path / "judged.json"
    run_program("critic", "evaluate", fitted / "critic", rollouts, "--output", output)
    printed = capsys.readouterr().out
    assert "48 responses to 12 prompts" in printed and "Verdict: " in printed
    assert "was fitted on a part of these responses" in printed
    judged = json.loads(output.read_text())
    measures, _ = measure_critic(str(fitted / "critic"), str(rollouts))
    assert judged["measures"] == measures.as_json()


def test_rows_that_cannot_be_read_are_refused_or_skipped(
    fitted: Path, rollouts: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    mixed = tmp_path / "mixed.jsonl"
    mixed.write_text(rollouts.read_text() + '{"prompt": "1?"}\n')
    judged = ("critic", "evaluate", fitted / "critic", mixed)
    with pytest.raises(SystemExit):
        run_program(*judged)
    assert "1 rows cannot be read (--drop_invalid=true skips them)" in capsys.readouterr().err
    with pytest.warns(UserWarning, match="skipped 1 rows that cannot be read: mixed.jsonl:49"):
        run_program(*judged, "--drop_invalid")
    printed = capsys.readouterr().out
    assert "48 responses to 12 prompts" in printed and "was fitted on" not in printed


def test_a_fit_skips_rows_that_cannot_be_read_if_told(
    rollouts: Path, tiny_actor: Path, tmp_path: Path
) -> None:
    mixed = tmp_path / "mixed.jsonl"
    mixed.write_text(rollouts.read_text() + '{"prompt": "1?"}\n')
    arguments = (str(mixed), str(tiny_actor), str(tmp_path / "fit"))
    with pytest.raises(ValueError, match="1 rows cannot be read"):
        fit_critic(*arguments, max_epochs=1, **FAST)
    with pytest.warns(UserWarning, match="skipped 1 rows"):
        fit_critic(*arguments, max_epochs=1, drop_invalid=True, **FAST)
    assert json.loads((tmp_path / "fit" / "fit.json").read_text())["responses"] == 48


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


def test_an_actor_is_for_side_critics_and_they_need_one(
    rollouts: Path, tiny_actor: Path, tmp_path: Path
) -> None:
    arguments = (str(rollouts), str(tiny_actor), str(tmp_path / "fit"))
    with pytest.raises(ValueError, match="set both --actor and --value"):
        fit_critic(*arguments, actor=str(tiny_actor), **FAST)
    with pytest.raises(ValueError, match="set both --actor and --value"):
        fit_critic(*arguments, value=ValueSettings(architecture="side"), **FAST)


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_out_of_bounds_is_refused_by_its_own_name(
    rollouts: Path, tiny_actor: Path, tmp_path: Path, seed: int
) -> None:
    message = f"^seed: expected a seed in 0..{2**32 - 1}, got {seed}$"
    with pytest.raises(ValueError, match=message):
        fit_critic(str(rollouts), str(tiny_actor), str(tmp_path / "fit"), seed=seed, **FAST)
