"""Every command and every flag of the documents is one that works."""

from __future__ import annotations

import ast
import contextlib
import importlib
import inspect
import io
import json
import os
import re
import shlex
from collections.abc import Callable, Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from packaging.requirements import Requirement

import lightning_vcppo
from lightning_vcppo.cli.commands import compare, critic, import_, plan, regrade, report, serve
from lightning_vcppo.cli.commands.registry import COMMANDS as COMMANDS_OF_VCPPO
from lightning_vcppo.cli.configs import find_config
from lightning_vcppo.critic_lab.specs import read_specs
from lightning_vcppo.models.critic import load_critic
from lightning_vcppo.settings import ValueSettings
from tests.support.pages import FENCE, blocks
from tests.support.report_runs import write_run
from tests.support.rows import every
from tests.support.tiny_runs import ROLLOUTS, ROOT, vcppo

PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "configs/README.md")]
PAGES += sorted((ROOT / "docs").rglob("*.md"))
STAGES = ("fit", "validate", "test", "predict")
BASE = ["--config=vcppo", "--config=demo/rl"]
"""What `vcppo fit ...` leaves out."""

COMMAND = re.compile(r"(?:[A-Z_]+=\S* )*(?:\.venv/bin/)?(?P<name>[a-z0-9.][\w./-]*)(?: |$)")
PROGRAMS = {"vcppo", "python", "python3", "make", "pip", "source", ".ci/run", "pre-commit"}
PROGRAMS |= {"bash", "sbatch", "pytest"}


def commands(page: Path) -> Iterator[str]:
    """Yield the commands of a page, without comments; lines ending in a backslash are joined."""
    for info, text in blocks(page):
        lines = re.sub(r"\\\n\s*", "", text).splitlines()
        whole = [re.sub(r"\s+#\s.*", "", line.strip()) for line in lines]
        if info == "sh":
            yield from filter(None, whole)
        elif not info:
            yield from (line for line in whole if program(line) in PROGRAMS)


def program(line: str) -> str:
    match = COMMAND.match(line)
    return match["name"] if match else ""


def by_page(page: Path) -> str:
    return str(page.relative_to(ROOT))


COMMANDS = {f"{by_page(page)}: {command}": command for page in PAGES for command in commands(page)}


@cache
def makefile() -> str:
    return (ROOT / "Makefile").read_text()


# What a command must pass -----------------------------------------------------------------------


def check_stage(arguments: list[str]) -> None:
    """Read the arguments of fit, validate, test or predict, as far as to the printed config."""
    whole = [part for text in arguments for part in (BASE if text == "..." else [text])]
    with pytest.raises(SystemExit) as end, contextlib.redirect_stdout(io.StringIO()):
        vcppo(*whole, *([] if "--print_config" in whole else ["--print_config"]))
    assert not end.value.code


def check_report(arguments: list[str]) -> None:
    """Write the report of runs with these names."""
    runs = [Path(name) for name in arguments if not name.startswith("-")]
    for run in runs:
        write_run(run)
    report.main(arguments)
    assert (runs[0] / "report.html").exists()


def check_function(name: str, arguments: list[str]) -> None:
    """Compare flags with the arguments of the function behind a command."""
    module = import_module(COMMANDS_OF_VCPPO[name].module)
    parameters = inspect.signature(getattr(module, name)).parameters
    flags = {text.partition("=")[0] for text in arguments if text.startswith("--")}
    assert flags <= {f"--{parameter}" for parameter in parameters}


def check_vcppo(arguments: list[str]) -> None:
    name, *rest = arguments
    if name in STAGES:
        check_stage(arguments)
    elif name == "plan":
        _, flags_of_fit = plan._parser().parse_known_args(rest)
        check_stage(["fit", *flags_of_fit])
    elif name == "report":
        check_report(rest)
    elif name == "compare":
        compare._parser().parse_args(rest)
    elif name == "import":
        import_._parser().parse_args(rest)
    elif name == "serve":
        serve._parser().parse_args(rest)
    elif name == "critic":
        check_critic(*rest)
    else:
        check_function(name, rest)


def check_critic(action: str, *arguments: str) -> None:
    """Read the arguments of an action."""
    if action == "compare":
        options, flags = critic.compare_parser().parse_known_args(arguments)
        read_specs(options.critics, options.actor)
        critic.fit_parser().parse_args([options.rollouts, "--model=m", "--output=o", *flags])
    elif action == "evaluate":
        critic.evaluate_parser().parse_args(arguments)
    else:
        critic.fit_parser().parse_args([*arguments])


def check_python(arguments: list[str]) -> None:
    """Find the module, and its flags in its source."""
    option, name, *rest = arguments
    assert option == "-m"
    if name == "venv":
        return
    place = ROOT.joinpath(*name.split("."))
    file = place / "__main__.py" if place.is_dir() else place.with_suffix(".py")
    source = file.read_text()
    assert file.name == "__main__.py" or 'if __name__ == "__main__":' in source, "not a program"
    if "from experiments.protocol import main" in source:  # which reads the flags
        source += (ROOT / "experiments" / "protocol.py").read_text()
    for text in rest:
        assert not text.startswith("--") or text.partition("=")[0].lstrip("-") in source, text


def test_what_the_makefile_runs_of_ours_is_a_program() -> None:
    ours = r"python -m ((?:benchmarks|experiments|lightning_vcppo)[\w.]*)"
    names = re.findall(ours, makefile())
    assert names
    for name in names:
        check_python(["-m", name])


def check_make(arguments: list[str]) -> None:
    targets = [text for text in arguments if "=" not in text]
    variables = [text.partition("=")[0] for text in arguments if "=" in text]
    assert targets
    assert all(re.search(rf"^{target}:.*##", makefile(), re.MULTILINE) for target in targets)
    assert all(re.search(rf"^{name} \?=", makefile(), re.MULTILINE) for name in variables)


def check_pip(arguments: list[str]) -> None:
    """Find the extras that are installed in pyproject.toml, and the files beside it."""
    for text in arguments[1:]:
        if text.startswith("lightning-vcppo"):
            for extra in Requirement(text).extras:
                assert f"\n{extra} = [" in (ROOT / "pyproject.toml").read_text(), extra
        elif text.endswith(".txt"):
            assert (ROOT / text).exists()


def check_files(arguments: list[str]) -> None:
    """Find the files."""
    assert arguments and all((ROOT / text).exists() for text in arguments)


def check_ci(arguments: list[str]) -> None:
    assert not arguments and os.access(ROOT / ".ci" / "run", os.X_OK)


def check_source(arguments: list[str]) -> None:
    """Compare with what `make install` and `python -m venv` make."""
    assert arguments == [".venv/bin/activate"]


def check_pre_commit(arguments: list[str]) -> None:
    assert arguments == ["install"] and (ROOT / ".pre-commit-config.yaml").exists()


CHECKS: dict[str, Callable[[list[str]], Any]] = {
    "vcppo": check_vcppo,
    "python": check_python,
    "python3": check_python,
    "make": check_make,
    "pip": check_pip,
    "bash": check_files,
    "sbatch": check_files,
    "pytest": check_files,
    ".ci/run": check_ci,
    "source": check_source,
    "pre-commit": check_pre_commit,
}


@pytest.mark.parametrize("command", every(8, COMMANDS.values()), ids=COMMANDS)
def test_a_command_of_the_documents_works(command: str) -> None:
    words = shlex.split(command)
    while re.match("[A-Z_]+=", words[0]):
        del words[0]
    CHECKS[words[0].removeprefix(".venv/bin/")](words[1:])


def test_no_command_is_overlooked() -> None:
    assert len(COMMANDS) > 60
    assert {program(command) for command in COMMANDS.values()} <= CHECKS.keys()
    assert "vcppo report runs/demo runs/demo_ppo" in commands(ROOT / "README.md")


def test_the_commands_of_the_quick_start_follow_one_another(tiny_actor: Path) -> None:
    page = list(commands(ROOT / "docs" / "quickstart.md"))
    fit = shlex.split(
        "vcppo fit --config vcppo --config demo/rl --trainer.default_root_dir runs/again"
    )
    assert shlex.join(fit) in page and "vcppo report runs/demo runs/lambda_95 runs/grpo" in page
    vcppo(
        *(
            *fit[1:],
            f"--model.actor={tiny_actor}",
            f"--model.critic={tiny_actor}",
            *ROLLOUTS,
            "--loggers=[csv]",
        ),
        "--trainer.val_check_interval=3",
    )
    report.main(["runs/again"])
    records = regrade.regrade("runs/again/evaluation/rollouts_000003.jsonl")
    assert len(records) == 2
    assert Path("runs/again/report.html").stat().st_size > 1e6  # with the library that draws


# Flags and names in running text ----------------------------------------------------------------


def leaves(config: dict[str, Any], above: str = "") -> Iterator[str]:
    """Yield the flags of all fields of a config, and of their groups."""
    for key, value in config.items():
        flag = above if key == "init_args" else f"{above}.{key}".lstrip(".")
        yield flag
        if isinstance(value, dict):
            yield from leaves(value, flag)


@pytest.fixture(scope="module")
def flags() -> set[str]:
    """All flags of `fit` with VC-PPO, cold start and reward model, without dashes."""
    found = {"config", "print_config"}
    for arguments in (BASE, ["--config=demo/cold_start"], ["--config=demo/reward_model"]):
        out = io.StringIO()
        with pytest.raises(SystemExit), contextlib.redirect_stdout(out):
            vcppo("fit", *arguments, "--print_config")
        found |= {*leaves(yaml.safe_load(out.getvalue()))}
    return found


@pytest.mark.parametrize("page", PAGES, ids=by_page)
def test_a_flag_in_the_text_is_one(page: Path, flags: set[str]) -> None:
    groups = {flag.partition(".")[0] for flag in flags if "." in flag}
    for flag in re.findall(r"--([a-z_]+\.[\w.]+)", page.read_text()):
        of_class = flag.startswith("trainer.strategy.")  # as it is named in the same command
        if flag.partition(".")[0] in groups and not of_class:
            assert re.sub(r"\.(class_path|init_args)$", "", flag.rstrip(".")) in flags, flag


def test_the_names_that_others_names_become_exist(flags: set[str]) -> None:
    rows = (ROOT / "docs" / "howto" / "migrate.md").read_text().splitlines()
    cells = [row.split("|")[-2] for row in rows if row.startswith("| ") and "| here |" not in row]
    names = [name.split()[0] for cell in cells for name in re.findall(r"`([a-z_]+\.[^`]+)`", cell)]
    assert len(names) > 40
    for name in names:
        assert name in flags or f"model.{name}" in flags, name


@pytest.mark.parametrize("page", PAGES, ids=by_page)
def test_a_link_leads_to_a_file(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", FENCE.sub("", page.read_text())):
        assert target.startswith("https://") or (page.parent / target).exists(), target


# The package ------------------------------------------------------------------------------------

PUBLIC = ("algorithm", "callbacks", "data", "generation", "models", "rewards")


@cache
def documented() -> set[tuple[str, str]]:
    """Return package and name of everything that the pages of the API describe."""
    text = "\n".join(page.read_text() for page in (ROOT / "docs" / "api").glob("*.md"))
    names = re.findall(r"^::: (?:lightning_vcppo\.)?([\w.]+)$", text, re.MULTILINE)
    return {(package, name) for package, _, name in (full.rpartition(".") for full in names)}


@pytest.mark.parametrize("package", PUBLIC)
def test_the_pages_of_the_api_have_the_public_names(package: str) -> None:
    public = importlib.import_module(f"lightning_vcppo.{package}").__all__
    assert {name for home, name in documented() if home == package} == set(public)


def test_the_pages_of_the_api_have_the_names_of_the_package_itself() -> None:
    assert {name for _, name in documented()} >= set(lightning_vcppo.__all__)


def test_the_tree_in_the_page_on_architecture_has_all_packages() -> None:
    tree = next(text for _, text in blocks(ROOT / "docs" / "architecture.md") if "/  " in text)
    listed = set(re.findall(r"^ +(\w+)/ ", tree, re.MULTILINE))
    packages = {path.parent.name for path in (ROOT / "lightning_vcppo").glob("*/__init__.py")}
    assert packages <= listed


# Code -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=by_page)
def test_python_of_a_page_imports_what_there_is_and_yaml_is_a_config(page: Path) -> None:
    for info, text in blocks(page):
        if info.startswith("python"):
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.ImportFrom) and f"{node.module}".startswith("lightning_"):
                    module = importlib.import_module(f"{node.module}")
                    assert all(hasattr(module, alias.name) for alias in node.names), text
        elif info.startswith("yaml"):
            assert isinstance(yaml.safe_load(text), dict), text


def test_the_configs_that_the_documents_name_exist() -> None:
    for page in PAGES:
        for name in re.findall(r"configs/[\w/.]+\.yaml", page.read_text()):
            assert find_config(name), f"{page}: {name}"


def test_the_python_of_the_page_runs(
    tiny_actor: Path, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("models").mkdir()
    Path("models/mine").symlink_to(tiny_actor)
    rows = [json.dumps({"problem": f"What is {i} + 30?", "answer": i + 30}) for i in range(24)]
    Path("problems.jsonl").write_text("\n".join(rows))
    page = ROOT / "docs" / "howto" / "python.md"
    program = "\n".join(text for info, text in blocks(page) if info == "python")
    for large, small in {
        "max_response_length=512": "max_response_length=8",
        "val_size=32, prompts_per_rollout=64": "val_size=4, prompts_per_rollout=8",
        "max_rollouts=20": "max_rollouts=1",
        "max_epochs=4": "max_epochs=2",
        "right = is_correct(response, answer)": "right = len(response) % 2 == 0",
        "lr=2e-5": "lr=1e-2",
        "max_new_tokens=64": "max_new_tokens=4",
        "L.Trainer(": "L.Trainer(accelerator='cpu', enable_progress_bar=False, ",
    }.items():
        assert large in program
        program = program.replace(large, small)
    names: dict[str, Any] = {}
    exec(compile(program, page.name, "exec"), names)
    ids_BL = names["inputs"].input_ids  # of which the last two tokens shall be the response
    critic = load_critic("runs/mine/critic", ValueSettings())
    prompt, mask_BT = ids_BL.shape[1] - 2, torch.ones(1, 2, dtype=torch.bool)
    values_N = critic.values(critic(ids_BL, torch.tensor([prompt]), mask_BT))
    assert torch.allclose(values_N, names["values"][prompt - 1 : prompt + 1], atol=1e-6)
    assert names["values"].std() > 1e-3
    assert names["advantages_BT"].tolist() == [[pytest.approx(x) for x in (0.81, 0.9, 1.0)]]
    assert Path("runs/mine/critic/config.json").exists()
    assert "eval after" in capsys.readouterr().out
