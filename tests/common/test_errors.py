"""RuntimeErrors: a library's refusal is one line, a fault of the code keeps its traceback."""

from __future__ import annotations

import linecache
import types

import pytest
import torch

from lightning_vcppo.common.errors import REFUSING, describe, one_line
from tests.support.tiny_runs import ROLLOUTS, run_program

SLURM = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2", "SLURM_JOB_NAME": "train", "SLURM_PROCID": "0"}
SLURM |= {"SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_NODELIST": "localhost"}


def raised_in(module: str, code: str) -> Exception:
    """Run code as if it stood in a module, and return what it raises."""
    file = f"<{module}>"
    linecache.cache[file] = (len(code), None, code.splitlines(True), file)
    namespace = types.ModuleType(module).__dict__ | {"torch": torch}
    with pytest.raises(Exception) as caught:
        exec(compile(code, file, "exec"), namespace)
    return caught.value


@pytest.mark.parametrize("library", REFUSING)
def test_what_a_library_raises_on_purpose_is_one_line(library):
    error = raised_in(
        f"{library.rstrip('.')}.x", "raise RuntimeError(\n    'give\\n  --ntasks'\n)\n"
    )
    assert one_line(describe(error)) == "give --ntasks"


@pytest.mark.parametrize(
    ("module", "code"),
    [
        ("lightning_vcppo.x", "raise RuntimeError('ours')\n"),
        ("somebody.x", "raise RuntimeError('theirs')\n"),
        ("transformers.x", "torch.ones(2) @ torch.ones(3)\n"),
        ("lightning.x", "raise KeyError('a fault')\n"),
    ],
)
def test_faults_are_no_users_mistake(module, code):
    assert describe(raised_in(module, code)) is None


def test_full_memory_names_the_flags():
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB. GPU 0 has")
    line = describe(error)
    assert "--model.update.ppo_max_token_len_per_gpu" in line and "\n" not in line


def test_slurms_ntasks_is_one_line(tiny_actor, monkeypatch, capsys):
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as end:
        run_program("validate", f"--model.actor={tiny_actor}", *ROLLOUTS, "--loggers=[csv]")
    assert end.value.code == 2
    *_, line = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("vcppo: error: ") and "--ntasks" in line
