"""Names of critics become settings, and wrong ones are named."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightning_vcppo.critic_lab.specs import read_specs


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("hl_gaus", "no critic 'hl_gaus', did you mean hl_gauss"),
        ("mse:lrr=1", "no setting 'lrr'"),
        ("mse:lr", "expected key=value"),
        ("side", "reads the actor's activations; name the actor with --actor"),
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
    with pytest.raises(ValueError, match="expected each once, got mse twice"):
        read_specs(["mse", "mse"])


def test_side_and_privileged_critics_are_settings_too() -> None:
    specs = read_specs(["side:side_width=16", "answer", "siblings:privileged_max_length=64"], "a")
    assert [spec.is_side for spec in specs] == [True, False, False]
    assert [spec.hints.privileged_prompt for spec in specs] == ["none", "answer", "siblings"]
    assert specs[2].hints.privileged_max_length == 64
