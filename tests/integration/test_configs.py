"""Every shipped config goes through the command line, and every algorithm through a short run."""

import inspect
from dataclasses import fields, is_dataclass
from typing import get_args, get_type_hints

import pytest
import yaml

from lightning_vcppo import VCPPOModule, settings
from lightning_vcppo.cli.configs import FRAGMENT_FLAGS
from lightning_vcppo.common.suggestions import ELSEWHERE
from tests.support.configs import printed
from tests.support.rows import every, thin
from tests.support.tiny_runs import CONFIGS, ROLLOUTS, assert_finite, logged, vcppo

ALGORITHMS = sorted(
    path
    for path in CONFIGS.glob("*.yaml")
    if "actor" not in yaml.safe_load(path.read_text())["model"]["init_args"]
)
COMBINED = {"grpo", "side_critic"}
"""Presets that `make test` combines with the demo on the command line; of others it reads keys."""
RUN = {"vcppo"}
"""Presets that `make test` runs here; its random runs take others, `make test-all` takes all."""
DIRECTORIES = ("configs", "demo", "fractions", "smollm2")
SETTINGS = [path for path in CONFIGS.rglob("*.yaml") if path.parent.name in DIRECTORIES]
SETTINGS = sorted(set(SETTINGS) - set(ALGORITHMS))
FRAGMENTS = sorted(p for p in CONFIGS.rglob("*.yaml") if p.parent.name not in DIRECTORIES)
FLAGS = {directory: flag for flag, directory in FRAGMENT_FLAGS.items()}


def assert_contains(whole, part, at=""):
    """Check that every leaf of `part` is in `whole`."""
    for key, value in part.items():
        if isinstance(value, dict):
            assert_contains(whole[key], value, f"{at}.{key}")
        else:
            assert whole[key] == value, f"{at}.{key}"


def by_name(path):
    return str(path.relative_to(CONFIGS))


def test_all_algorithms_are_found():
    names = {path.stem for path in ALGORITHMS}
    assert {"ppo", "vcppo", "vapo", "grpo", "rloo", "orz", "sao", "bpco", "easyppo"} < names
    assert {"hl_gauss_ppo", "pact", "pippo", "side_critic"} < names


@pytest.mark.parametrize("path", every(9, ALGORITHMS + SETTINGS), ids=by_name)
def test_a_config_is_what_it_says(path):
    actor = ["--model.actor=x"] if path in ALGORITHMS else []
    given = yaml.safe_load(path.read_text())
    config = printed("--config", path, *actor)
    for callback in given.get("trainer", {}).pop("callbacks", []):
        assert callback["class_path"] in str(config)
    assert_contains(config, given)


@pytest.mark.parametrize("path", every(4, FRAGMENTS), ids=by_name)
def test_a_fragment_is_what_it_says(path):
    flag = FLAGS[path.parent.name]
    config = printed("--model.actor=x", flag, by_name(path))
    for key in flag.removeprefix("--").split("."):
        config = config[key] if key in config else config["init_args"][key]
    assert_contains(config, yaml.safe_load(path.read_text()))


def test_fragments_are_found_beside_the_config_that_names_them(tmp_path):
    for kind, name in {"data": "generated_easy", "trainer": "ddp"}.items():
        (tmp_path / kind).mkdir()
        (tmp_path / kind / "a.yaml").write_text((CONFIGS / kind / f"{name}.yaml").read_text())
    (tmp_path / "run.yaml").write_text("data: data/a.yaml\ntrainer: trainer/a.yaml\n")
    config = printed("--config", tmp_path / "run.yaml", "--model.actor=x", "--data.val_size=3")
    assert config["trainer"]["strategy"] == "ddp"
    assert (config["data"]["train_size"], config["data"]["val_size"]) == (6400, 3)


@pytest.mark.parametrize("path", ALGORITHMS, ids=by_name)
def test_the_setting_of_the_demo_has_no_key_of_the_algorithm(path):
    demo = yaml.safe_load((CONFIGS / "demo" / "rl.yaml").read_text())
    setting, algorithm = demo["model"]["init_args"], yaml.safe_load(path.read_text())
    assert not {"advantage", "policy", "value"} & setting.keys()
    assert not algorithm["model"]["init_args"]["sampling"].keys() & setting["sampling"].keys()
    assert "enabled" not in demo["value_pretraining"]


@pytest.mark.parametrize("path", thin(ALGORITHMS, lambda p: p.stem in COMBINED), ids=by_name)
def test_the_setting_of_the_demo_leaves_the_algorithm_alone(path):
    algorithm = yaml.safe_load(path.read_text())
    config = printed("--config", path, "--config", CONFIGS / "demo" / "rl.yaml")
    for group in ("advantage", "policy", "value"):
        part = algorithm["model"]["init_args"].get(group, {})
        assert_contains(config["model"]["init_args"][group], part)
    sampling = algorithm["model"]["init_args"]["sampling"]
    assert_contains(config["model"]["init_args"]["sampling"], sampling)
    enabled = algorithm["value_pretraining"]["enabled"]
    assert config["value_pretraining"]["enabled"] is enabled
    assert config["model"]["init_args"]["actor_optimizer"]["lr"] > 1e-6  # the setting's


def test_references_follow_later_flags(tmp_path):
    path = tmp_path / "equal.yaml"
    path.write_text(
        "model: {init_args: {actor: x, sampling: {max_response_length: 7},"
        ' evaluation: {max_response_length: "${..sampling.max_response_length}"}}}'
    )
    for flags, length in (([], 7), (["--model.sampling.max_response_length=9"], 9)):
        model = printed("--config", path, *flags)["model"]["init_args"]
        assert model["evaluation"]["max_response_length"] == length


def test_every_optional_setting_takes_null_on_the_command_line():
    groups = [name for name in settings.__all__ if is_dataclass(getattr(settings, name))]
    parameters = {
        name: getattr(settings, type(parameter.default).__name__)
        for name, parameter in inspect.signature(VCPPOModule).parameters.items()
        if type(parameter.default).__name__ in groups
    }
    optional = {
        f"{group}.{field.name}": field.default
        for group, kind in parameters.items()
        for field in fields(kind)
        if type(None) in get_args(get_type_hints(kind)[field.name])
    }
    assert {"value.cliprange_value", "advantage.length_adaptive_alpha"} < optional.keys()
    model = printed("--model.actor=x", *(f"--model.{name}=null" for name in optional))["model"]
    for name in optional:
        group, field = name.split(".")
        assert model["init_args"][group][field] is None, name


def test_flags_of_other_trainers_are_named_as_here():
    flags = {*leaves(printed("--model.actor=x"))}
    assert {flag.removeprefix("--") for flag in ELSEWHERE.values()} <= flags


def leaves(config, above=""):
    """Yield the flags of all fields of a config."""
    for key, value in config.items():
        flag = above if key == "init_args" else f"{above}.{key}".lstrip(".")
        yield flag
        if isinstance(value, dict):
            yield from leaves(value, flag)


@pytest.mark.parametrize("path", thin(ALGORITHMS, lambda p: p.stem in RUN), ids=by_name)
def test_an_algorithm_runs_in_all_its_phases(path, tiny_actor, tmp_path):
    algorithm = yaml.safe_load(path.read_text())
    alpha = algorithm["model"]["init_args"]["advantage"].get("length_adaptive_alpha")
    longest = max(12, int(1.2 / alpha)) if alpha else 12  # shorter ones would all have lambda 0
    many = algorithm["model"]["init_args"]["sampling"]["num_generations"] > 1
    vcppo(
        *("fit", "--config", path, f"--model.actor={tiny_actor}", *ROLLOUTS, "--loggers=[csv]"),
        f"--data.prompts_per_rollout={2 if many else 12}",
        f"--model.sampling.max_response_length={longest}",
        "--model.value.privileged_max_length=256",  # the tiny actor has 1024 positions
        "--trainer.enable_checkpointing=false",
        "--trainer.limit_val_batches=0",
        f"--trainer.default_root_dir={tmp_path}",
    )
    assert_finite(tmp_path)
    rows = [row for row in logged(tmp_path) if "rollout/reward_mean" in row]
    assert [row["step"] for row in rows] == [1, 2, 3]
    pretrained = [row for row in rows if "policy/loss" not in row]
    assert len(pretrained) == int(algorithm["value_pretraining"]["enabled"])
    has_critic = algorithm["model"]["init_args"]["advantage"].get("estimator", "gae") == "gae"
    assert all(("critic/loss" in row) == has_critic for row in rows)


@pytest.mark.parametrize("path", ALGORITHMS + SETTINGS, ids=by_name)
def test_a_config_opens_with_its_command_and_what_one_should_see(path):
    comment = [line for line in path.read_text().splitlines() if line.startswith("# ")]
    name = by_name(path).removesuffix(".yaml")
    assert any("vcppo fit" in x and f"--config {name}" in x for x in comment)
    assert any(line.startswith("# See: ") for line in comment)
