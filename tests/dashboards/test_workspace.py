"""The definitions of metrics, and the dashboard that is built from them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import WandbLogger

from lightning_vcppo.common.errors import USER_ERROR
from lightning_vcppo.dashboards.loggers import RUN_ID, continue_run
from lightning_vcppo.dashboards.workspace import SECTIONS, X_AXIS, build_workspace, lines
from lightning_vcppo.metrics.glossary import GLOSSARY, Definition, define, definitions
from tests.support.tiny_runs import ROOT, run_program

# Definitions


def test_definitions_are_the_rows_of_the_page() -> None:
    kl = define("policy/approx_kl")
    assert (kl.meaning, kl.healthy) == ("mean of r - 1 - log r (k3), r = pi / pi_old", "0 to 0.05")
    assert define("critic/value_error").meaning == r"mean \|V - R\|"  # no end of the cell
    keys = [definition.key for definition in definitions()]
    page = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    for heading, group in GLOSSARY.items():
        section = page.split(f"## {heading}\n")[1].split("\n## ")[0]
        rows = [f"| `{d.key}` | {d.meaning} | {d.healthy} |".replace("|  |", "| |") for d in group]
        assert [line for line in section.splitlines() if line.startswith("| `")][
            : len(rows)
        ] == rows
    assert len(keys) == len(set(keys)) > 50
    assert all(key == "step" or "/" in key for key in keys)


def test_braces_stand_for_a_part_of_the_name() -> None:
    deciles = Definition("decay/value_decile_{0..9}", "", "")
    assert deciles.covers("decay/value_decile_3")
    assert not deciles.covers("decay/value_decile_")
    assert not deciles.covers("decay/value_decile_3/x")
    assert define("eval/accuracy_low").key == "eval/{rate}_low"
    assert define("eval/pass_at_k").key == "eval/pass_at_k"  # exact before pattern
    assert define("eval/pass_at_8").key == "eval/pass_at_{m}"
    with pytest.raises(KeyError, match="does not define eval/guesses"):
        define("eval/guesses")


# The workspace


def test_a_dry_run_prints_the_workspace(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("wandb_workspaces")
    run_program("dashboard", "--project=p", "--dry_run")
    spec = json.loads(capsys.readouterr().out)
    sections = spec["section"]["panelBankConfig"]["sections"]
    assert [section["name"] for section in sections] == list(SECTIONS)
    for section, panels in zip(sections, SECTIONS.values(), strict=True):
        plots = [p["config"] for p in section["panels"] if "Line Plot" in p["viewType"]]
        wanted = [[line for key in keys for line in lines(key)] for keys in panels]
        assert [plot["metrics"] for plot in plots] == wanted
        assert {plot["xAxis"] for plot in plots} == {X_AXIS}
        (text,) = (p["config"]["value"] for p in section["panels"] if "Markdown" in p["viewType"])
        for key in (key for keys in panels for key in keys):
            assert f"| `{key}` | {define(key).meaning} | {define(key).healthy} |" in text


def test_a_workspace_knows_its_place() -> None:
    pytest.importorskip("wandb_workspaces")
    workspace = build_workspace("p", "somebody")
    assert (workspace.entity, workspace.project) == ("somebody", "p")


def test_without_the_extra_one_line_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    with pytest.raises(SystemExit) as end:
        run_program("dashboard", "--dry_run")
    assert end.value.code == USER_ERROR
    expected = "vcppo: error: needs `pip install 'lightning-vcppo[dashboard]'`\n"
    assert capsys.readouterr().err == expected


def test_the_commands_are_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    run_program("--help")
    assert "\n  dashboard " in capsys.readouterr().out


# Resumed runs


@pytest.mark.parametrize(
    ("ckpt_path", "id_of_the_logger", "expected"),
    [
        ("runs/a/checkpoints/x.ckpt", None, "of_a"),
        ("runs/a/b/checkpoints/x.ckpt", None, "of_b"),  # the nearest directory
        ("last", None, "of_c"),  # the trainer's directory
        ("elsewhere/x.ckpt", None, None),
        (None, None, None),  # not resumed
        ("runs/a/checkpoints/x.ckpt", "mine", "mine"),
    ],
)
def test_a_resumed_run_takes_the_id_of_its_checkpoints_run(
    tmp_path: Path, ckpt_path: str | None, id_of_the_logger: str | None, expected: str | None
) -> None:
    for directory, run_id in (("runs/a", "of_a"), ("runs/a/b", "of_b"), ("runs/c", "of_c")):
        (tmp_path / directory / RUN_ID).parent.mkdir(parents=True)
        (tmp_path / directory / RUN_ID).write_text(run_id)
    if ckpt_path not in (None, "last"):
        (tmp_path / ckpt_path).parent.mkdir(parents=True)
        (tmp_path / ckpt_path).touch()
        ckpt_path = str(tmp_path / ckpt_path)
    logger = WandbLogger(save_dir=tmp_path, offline=True, id=id_of_the_logger)
    trainer = Trainer(logger=logger, default_root_dir=tmp_path / "runs" / "c", accelerator="cpu")
    continue_run(trainer, ckpt_path)
    assert logger.version == logger._wandb_init["id"] == expected
