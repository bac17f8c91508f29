"""What the command line does in a process of its own: its processor time, and its types."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import sys, time
import lightning.pytorch, transformers, torch
libraries = time.process_time()
from lightning_vcppo.cli import main
sys.argv = ["vcppo", *sys.argv[1:]]
try:
    main.run()
finally:
    print(time.process_time() - libraries, file=sys.stderr)
"""


@pytest.mark.thorough
def test_print_config_costs_little_more_than_its_libraries(tmp_path):
    """In one process, so that libraries and program meet the same load."""
    flags = ("fit", "--config", "vcppo", "--model.actor", str(tmp_path), "--print_config")
    done = subprocess.run([sys.executable, "-c", PROGRAM, *flags], capture_output=True, text=True)
    assert "lambda_critic: 1.0" in done.stdout, done.stderr
    assert float(done.stderr.splitlines()[-1]) < 2.5


def test_one_batch_is_not_all_batches(tmp_path):
    """In a process of its own: who has imported what before decides how types are spelled."""
    program = "from typing import Optional, Union; Optional[Union[float, int]]\n" + PROGRAM
    flags = ("fit", "--config", "vcppo", "--model.actor", str(tmp_path), "--print_config")
    batches = ("--trainer.limit_train_batches", "1", "--trainer.limit_val_batches", "0.5")
    done = subprocess.run(
        [sys.executable, "-c", program, *flags, *batches], capture_output=True, text=True
    )
    assert "limit_train_batches: 1\n" in done.stdout, done.stderr
    assert "limit_val_batches: 0.5\n" in done.stdout
