"""What all tests share: one thread, no accounts, published data, a tiny actor and critic."""

from __future__ import annotations

import os
import random
import signal
import warnings
from collections.abc import Iterator
from pathlib import Path

# Before torch is imported: workers with several threads each slow one another down.
os.environ.update(
    OMP_NUM_THREADS=os.environ.get("TEST_THREADS", "1"),
    MKL_NUM_THREADS=os.environ.get("TEST_THREADS", "1"),
    TOKENIZERS_PARALLELISM="false",
    HF_HUB_OFFLINE="1",
    WANDB_MODE="offline",
    WANDB_SILENT="true",
    MPLBACKEND="agg",
)

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Import the libraries, but in xdist's first process, which only deals tests out.

    Its workers would start as much later as that takes: five seconds.
    """
    if config.getoption("dist", "no") != "no" and not hasattr(config, "workerinput"):
        return
    # A shell ignores Ctrl-C in what it starts in the background, and so would what tests start.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # Before transformers: typing gives whoever asks later for int | float | None the float | int |
    # None that came first; jsonargparse then reads Lightning's limit_train_batches=1 as 1.0: all
    # batches.
    import lightning.pytorch  # noqa: F401
    import torch

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


@pytest.hookimpl(tryfirst=True)
def pytest_warning_recorded(warning_message: warnings.WarningMessage) -> None:
    """Give a library's warning a class of Python's own.

    xdist's first process would import the library to show it, and deal out no tests meanwhile.
    """
    warning_message.category = UserWarning
    warning_message.message = UserWarning(str(warning_message.message))


@pytest.fixture(autouse=True)
def _clean_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Start outside the checkout, and leave no seed and no ranks of a run behind.

    Whatever a test draws is the same each time, alone or after others; so is what fixtures of a
    module draw, which are made before this one.
    """
    import torch

    from tests.support.tiny_runs import LAUNCHED

    random.seed(0)
    torch.manual_seed(0)
    monkeypatch.chdir(tmp_path)
    yield
    for variable in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS", *LAUNCHED):
        os.environ.pop(variable, None)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Directory of published problems and model outputs, which are not part of this repository."""
    beside_checkout = Path(__file__).parents[2] / "shared" / "data"
    directory = Path(os.environ.get("VCPPO_SHARED_DATA", beside_checkout))
    if not directory.is_dir():
        pytest.skip(f"no published data in {directory}; set VCPPO_SHARED_DATA to their directory")
    return directory


@pytest.fixture(scope="session")
def tiny_actor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a two-layer Qwen2 with random weights and the tokenizer of the demo."""
    import torch

    from lightning_vcppo.data.tiny_tokenizer import default_tokenizer
    from lightning_vcppo.models import loading
    from lightning_vcppo.models.hf_folders import write_folder
    from tests.support.tiny_runs import TINY_QWEN2

    tokenizer = default_tokenizer(320)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        actor = loading.build_actor(TINY_QWEN2, tokenizer)
    directory = tmp_path_factory.mktemp("tiny") / "actor"
    write_folder(directory, actor, tokenizer)
    return directory


@pytest.fixture(scope="session")
def tiny_critic(tiny_actor: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a critic with a scalar head, begun from `tiny_actor`; V = 0 everywhere."""
    from lightning_vcppo.models import loading
    from lightning_vcppo.models.critic import load_critic
    from lightning_vcppo.models.hf_folders import write_folder
    from lightning_vcppo.settings import ValueSettings

    critic = load_critic(str(tiny_actor), ValueSettings())
    directory = tmp_path_factory.mktemp("tiny") / "critic"
    write_folder(directory, critic.model, loading.load_tokenizer(str(tiny_actor)))
    return directory
