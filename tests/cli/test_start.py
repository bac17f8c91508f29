"""Processor time that the command line adds to importing its libraries."""

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
