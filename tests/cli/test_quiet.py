"""What a command prints into a pipe: its own lines, without those of libraries."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import warnings
from pathlib import Path

import lightning
import pytest

import lightning_vcppo as ours
from lightning_vcppo import callbacks
from lightning_vcppo.cli.quiet import quieten
from tests.support.lab_rollouts import write_rollouts


@pytest.fixture(scope="module")
def rollouts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rollouts(tmp_path_factory.mktemp("quiet") / "rollouts.jsonl")


def printed(*arguments: object, **environment: str) -> tuple[list[str], list[str]]:
    """Run `vcppo` in a new process, and return the lines of stdout and stderr."""
    kept = {k: v for k, v in os.environ.items() if k != "HF_HUB_DISABLE_PROGRESS_BARS"}
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-m", "lightning_vcppo", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
        env=kept | {"PYTHONPATH": root, "CUDA_VISIBLE_DEVICES": ""} | environment,
    )
    return done.stdout.splitlines(), done.stderr.splitlines()


@pytest.mark.parametrize(
    ("place", "shown"),
    [
        (ours.__file__, "vcppo: warning: a b\n"),
        (callbacks.__file__, "vcppo: warning: a b\n"),
        (lightning.__file__, f"{lightning.__file__}:7: a b\n"),
        (pytest.__file__, f"{pytest.__file__}:7: UserWarning: a b\n  line\n"),
        ("mine.py", "mine.py:7: UserWarning: a b\n  line\n"),
    ],
)
def test_our_warnings_are_shown_without_their_place(place: str | None, shown: str) -> None:
    for _ in range(2):
        quieten()
        assert warnings.formatwarning("a b", UserWarning, str(place), 7, "line") == shown


@pytest.mark.thorough
def test_a_fit_of_a_critic_prints_a_line_per_pass_and_no_bars(
    rollouts: Path, tiny_actor: Path, tmp_path: Path
) -> None:
    output = tmp_path / "fit"
    flags = ["--max_epochs=2", "--mini_batch_size=16", "--accelerator=cpu"]
    stdout, stderr = printed(
        "critic", "fit", rollouts, "--model", tiny_actor, "--output", output, *flags
    )
    assert [line.replace(";", ":").split(":")[0] for line in [*stderr, *stdout]] == [
        "GPU available",
        "Pass 1",
        "Pass 2",
        "`Trainer.fit` stopped",
        "Ended after pass 2",
        "Held out",
        "warning",  # two passes of a tiny model explain nothing
        f"The critic and its card are in {output / 'critic'}",
    ]
    assert (output / "metrics" / "metrics.csv").exists()


@pytest.mark.thorough
def test_an_evaluation_prints_results_alone_unless_bars_are_asked_for(
    rollouts: Path, tiny_critic: Path
) -> None:
    stdout, stderr = printed("critic", "evaluate", tiny_critic, rollouts)
    assert stdout[0] == "48 responses to 12 prompts" and not stderr
    _, stderr = printed(
        "critic", "evaluate", tiny_critic, rollouts, HF_HUB_DISABLE_PROGRESS_BARS="0"
    )
    assert any(line.startswith("Loading weights") for line in stderr)


@pytest.mark.thorough
def test_an_export_prints_results_alone(tiny_critic: Path, tmp_path: Path) -> None:
    output = tmp_path / "nemo"
    stdout, stderr = printed(
        "export", "--ckpt_path", tiny_critic, "--output", output, "--layout", "nemo"
    )
    assert stdout[0].startswith("NeMo-RL: ") and not stderr


def test_a_missing_font_is_not_told_for_each_text(caplog, tmp_path):
    quieten()
    import matplotlib

    from lightning_vcppo.report.plotting import open_figure

    with matplotlib.rc_context({"font.family": "NoSuchFont"}):
        figure, _ = open_figure("title", "x", "y")
        figure.savefig(tmp_path / "figure.png")
    assert "findfont" not in caplog.text


@pytest.mark.parametrize(
    ("logger", "message"),
    [
        ("lightning.pytorch.utilities.rank_zero", "💡 Tip: try installing [litlogger](...)"),
        ("lightning.fabric.utilities.rank_zero", "💡 Tip: try installing [litmodels](...)"),
        ("lightning.pytorch.utilities.rank_zero", "TPU available: False"),
        ("matplotlib.font_manager", "findfont: Font family 'Arial' not found."),
        ("matplotlib", "Matplotlib created a temporary cache directory"),
    ],
)
def test_advertisements_and_fonts_are_not_shown_and_errors_are(
    logger: str, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    quieten()
    logging.getLogger(logger).warning(message)
    assert not caplog.records
    logging.getLogger(logger).error("the disk is full")
    assert [record.getMessage() for record in caplog.records] == ["the disk is full"]
