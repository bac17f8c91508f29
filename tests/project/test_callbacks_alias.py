"""`lightning_vcppo.callbacks` is the top-level directory `callbacks/`, in a checkout or a wheel."""

from __future__ import annotations

import inspect
import sys
from importlib import import_module
from pathlib import Path

import pytest
from lightning.pytorch import Callback

import lightning_vcppo.callbacks

ROOT = Path(__file__).parents[2]
DIRECTORY = ROOT / "callbacks"
MODULES = sorted(path.stem for path in DIRECTORY.glob("*.py") if path.stem != "__init__")


def test_the_alias_exports_every_callback_of_the_directory() -> None:
    defined = {
        name
        for stem in MODULES
        for name, value in vars(import_module(f"lightning_vcppo.callbacks.{stem}")).items()
        if inspect.isclass(value) and issubclass(value, Callback)
        if stem != "base" and value.__module__ == f"lightning_vcppo.callbacks.{stem}"
    }
    assert set(lightning_vcppo.callbacks.__all__) == defined
    assert defined <= set(vars(lightning_vcppo.callbacks))


@pytest.mark.parametrize("stem", MODULES)
def test_a_submodule_is_the_file_in_the_directory(stem: str) -> None:
    module = import_module(f"lightning_vcppo.callbacks.{stem}")
    assert module.__file__ is not None
    assert Path(module.__file__) == DIRECTORY / f"{stem}.py"


def test_no_global_package_named_callbacks_is_imported() -> None:
    assert "callbacks" not in sys.modules
