"""`lightning_vcppo.callbacks` is the top-level folder `callbacks/`, in a checkout or a wheel."""

from __future__ import annotations

import inspect
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from lightning.pytorch import Callback

import lightning_vcppo.callbacks

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "callbacks"
MODULES = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "__init__")


def test_the_alias_exports_every_callback_of_the_folder() -> None:
    defined = {
        name
        for stem in MODULES
        for name, value in vars(import_module(f"lightning_vcppo.callbacks.{stem}")).items()
        if inspect.isclass(value) and issubclass(value, Callback)
        if value.__module__ == f"lightning_vcppo.callbacks.{stem}"
    }
    assert set(lightning_vcppo.callbacks.__all__) == defined
    assert defined <= set(vars(lightning_vcppo.callbacks))


@pytest.mark.parametrize("stem", MODULES)
def test_a_submodule_is_the_file_in_the_folder(stem: str) -> None:
    module = import_module(f"lightning_vcppo.callbacks.{stem}")
    assert module.__file__ is not None
    assert Path(module.__file__) == FOLDER / f"{stem}.py"


def test_no_global_package_named_callbacks_is_imported() -> None:
    assert "callbacks" not in sys.modules


def test_a_wheel_holds_the_real_files_in_the_place_of_the_alias(tmp_path: Path) -> None:
    if not (ROOT / "pyproject.toml").exists():
        pytest.skip("not a checkout: there is no pyproject.toml to build from")
    # build_py copies what a wheel would hold, without the wheel's metadata and isolation.
    build = [sys.executable, "-c", "from setuptools import setup; setup()", "-q", "egg_info"]
    build += ["--egg-base", str(tmp_path), "build_py", "--build-lib", str(tmp_path / "lib")]
    subprocess.run(build, check=True, cwd=ROOT, capture_output=True)
    packaged = tmp_path / "lib" / "lightning_vcppo" / "callbacks"
    sources = {path.name: path.read_bytes() for path in FOLDER.glob("*.py")}
    assert {path.name: path.read_bytes() for path in packaged.glob("*.py")} == sources
    assert not (tmp_path / "lib" / "callbacks").exists()
    definitions = tmp_path / "lib" / "lightning_vcppo" / "docs" / "metrics.md"
    assert definitions.read_bytes() == (ROOT / "docs" / "metrics.md").read_bytes()
