"""Processor time that the command line adds to importing its libraries."""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys


def processor_s(*arguments: str) -> float:
    """Return the processor time of a Python process, in seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def test_print_config_costs_little_more_than_its_libraries(tmp_path):
    libraries, program = [], []
    fit = ("-m", "lightning_vcppo", "fit", "--config", "vcppo", "--model.actor", str(tmp_path))
    for _ in range(3):  # taken in turn, so that both meet the same load
        libraries.append(processor_s("-c", "import lightning.pytorch, transformers, torch"))
        program.append(processor_s(*fit, "--print_config"))
    assert statistics.median(program) - statistics.median(libraries) < 2.5
