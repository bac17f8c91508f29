"""No file of others runs code, no text of theirs is more than text, and no secret is written."""

from __future__ import annotations

import ast
import json
import os
import pickle
from pathlib import Path
from unittest import mock

import pytest
import torch
import torch.distributed.checkpoint as dcp
import wandb

from lightning_vcppo.checkpointing.safe_loading import ALLOW_PICKLE, refuse_code_in
from lightning_vcppo.cli import lightning_cli
from lightning_vcppo.cli.commands import regrade
from lightning_vcppo.common.terminal import printable
from lightning_vcppo.dashboards import media
from lightning_vcppo.data.sources import load_problems
from lightning_vcppo.models import loading
from lightning_vcppo.models.critic import load_critic, load_reward_model
from lightning_vcppo.report import write_report
from lightning_vcppo.rollouts.records import ResponseRecord, write_csv, write_records
from lightning_vcppo.settings import ValueSettings
from tests.support.tiny_runs import ROLLOUTS, ROOT, run_program, vcppo
from tests.support.training import make_module

SECRETS = {
    "WANDB_API_KEY": "5ec2e7" + "0123456789abcdef" * 2 + "ab",
    "HF_TOKEN": "hf_5ec2e7TokenOfNobodyAtAll",
    "HUGGING_FACE_HUB_TOKEN": "hf_5ec2e7OldTokenOfNobody",
    "AWS_SECRET_ACCESS_KEY": "5ec2e7/aws/key/of/nobody",
    "OPENAI_API_KEY": "sk-5ec2e7-of-nobody",
    "HTTPS_PROXY": "http://nobody:5ec2e7@localhost:9",
}
MARK = b"5ec2e7"
CLEAR_SCREEN = "\x1b[2J\x1b]0;owned\x07\u202e"


class Bomb:
    """A pickle of it creates a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def record(response: str, **changes) -> ResponseRecord:
    fields = {"evaluation_set": "held_out", "index": 0, "sample": 0, "seed": 0, "source": "a:1"}
    fields |= {"year": None, "problem": "1 + 1?", "answer": 2, "prediction": None, "length": 3}
    return ResponseRecord(
        **fields | {"response": response, "correct": False, "finished": True} | changes
    )


# Models


@pytest.fixture
def pickled(tiny_actor, tmp_path):
    """The tiny actor, its weights in a pickle."""
    for file in tiny_actor.iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    state = loading.load_actor(str(tiny_actor)).state_dict()
    torch.save(state, tmp_path / "pytorch_model.bin")
    return tmp_path


def test_weights_in_a_pickle_are_read_on_request_alone(pickled, tiny_actor, monkeypatch):
    loaders = (loading.load_actor, load_reward_model)
    for load in (*loaders, lambda directory: load_critic(directory, ValueSettings())):
        with pytest.raises(ValueError, match=r"pickle .* --allow_pickle=true") as error:
            load(str(pickled))
        assert str(pickled) in str(error.value) and "\n" not in str(error.value)
    monkeypatch.setenv(ALLOW_PICKLE, "1")
    with pytest.warns(UserWarning, match="reading weights from a pickle"):
        actor = loading.load_actor(str(pickled))
    expected = loading.load_actor(str(tiny_actor)).state_dict()
    assert all(torch.equal(x, expected[name]) for name, x in actor.state_dict().items())


def test_even_an_allowed_pickle_runs_no_code(pickled, tmp_path, monkeypatch):
    monkeypatch.setenv(ALLOW_PICKLE, "1")
    (pickled / "pytorch_model.bin").write_bytes(pickle.dumps({"x": Bomb(tmp_path / "ran")}))
    with pytest.raises(ValueError), pytest.warns(UserWarning, match="pickle"):
        loading.load_actor(str(pickled))
    assert not (tmp_path / "ran").exists()


def test_the_flag_reaches_every_process(monkeypatch, pickled):
    monkeypatch.setenv(ALLOW_PICKLE, "")  # so that it is put back
    with pytest.warns(UserWarning, match="reading weights from a pickle"):
        vcppo(
            *("validate", f"--model.actor={pickled}", *ROLLOUTS, "--allow_pickle=true"),
            "--loggers=[csv]",
        )
    assert os.environ[ALLOW_PICKLE] == "1"


def test_safetensors_are_preferred_to_a_pickle_beside_them(pickled, tiny_actor, tmp_path):
    weights = (tiny_actor / "model.safetensors").read_bytes()
    (pickled / "model.safetensors").write_bytes(weights)
    (pickled / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))
    loading.load_actor(str(pickled))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("kind", ["model", "tokenizer"])
def test_code_in_a_models_directory_is_not_run(kind, tiny_actor, tmp_path, monkeypatch):
    for file in tiny_actor.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "theirs.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    name, load, theirs = {
        "model": (
            "config.json",
            loading.load_actor,
            {"model_type": "theirs", "auto_map": {"AutoModelForCausalLM": "theirs.Theirs"}},
        ),
        "tokenizer": (
            "tokenizer_config.json",
            loading.load_tokenizer,
            {"tokenizer_class": "Theirs", "auto_map": {"AutoTokenizer": ["theirs.Theirs", None]}},
        ),
    }[kind]
    path = tmp_path / name
    theirs["auto_map"]["AutoConfig"] = "theirs.Theirs"
    path.write_text(json.dumps(json.loads(path.read_text()) | theirs))
    monkeypatch.setattr("builtins.input", lambda *args: pytest.fail("it asked"))
    if kind == "model":
        with pytest.raises(ValueError, match="code that comes with it is not run") as error:
            load(str(tmp_path))
        assert "\n" not in str(error.value)
    else:
        load(str(tmp_path))  # by a class that transformers has
    assert not (tmp_path / "ran").exists()


# Checkpoints and data


def test_a_checkpoint_runs_no_code(tiny_actor, tmp_path, capsys):
    torch.save({"state_dict": {}, "x": Bomb(tmp_path / "ran")}, tmp_path / "evil.ckpt")
    with pytest.raises(SystemExit) as end:
        run_program("fit", f"--model.actor={tiny_actor}", f"--ckpt_path={tmp_path}/evil.ckpt")
    assert end.value.code == 2
    assert (
        "evil.ckpt: contains Python objects, which could run code when loaded"
        in capsys.readouterr().err
    )
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
def test_a_checkpoint_from_a_url_is_read_like_any_other(command, tiny_actor, capsys):
    with pytest.raises(SystemExit):
        vcppo(command, f"--model.actor={tiny_actor}", "--print_config")
    assert "\nweights_only: true\n" in capsys.readouterr().out


def test_the_index_of_a_checkpoint_in_parts_is_looked_through(tmp_path, monkeypatch):
    state = {"weights": torch.zeros(3, 4), "half": torch.zeros(2, dtype=torch.bfloat16)}
    state |= {"rollouts": 3, "names": ["a", {"b": torch.tensor(1)}]}
    with pytest.warns(UserWarning):
        dcp.save(state, checkpoint_id=tmp_path / "ours", no_dist=True)
    refuse_code_in(tmp_path / "ours")
    refuse_code_in(tmp_path)  # no checkpoint in parts
    index = tmp_path / "theirs" / ".metadata"
    index.parent.mkdir()
    for bomb in (Bomb(tmp_path / "ran"), os.system, torch.load, pickle.loads):
        index.write_bytes(pickle.dumps({"storage_data": bomb}))
        with pytest.raises(ValueError, match="not the index of a checkpoint, it names"):
            refuse_code_in(index.parent)
    assert not (tmp_path / "ran").exists()
    monkeypatch.setenv(ALLOW_PICKLE, "1")
    refuse_code_in(index.parent)


def test_a_data_sets_script_is_not_run(tmp_path):
    directory = tmp_path / "theirs"
    directory.mkdir()
    (directory / "theirs.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    (directory / "data.jsonl").write_text('{"problem": "1 + 1?", "answer": 2}\n')
    try:
        assert load_problems(directory)[0].answer == 2
    except ValueError as error:
        assert "script" in str(error)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("value", ["[" * 100_000, "1" * 5_000])
@pytest.mark.parametrize("row", ["{}", '{{"problem": "1?", "answer": {}}}', "[{}]"])
def test_numbers_and_nesting_beyond_python_are_a_users_mistake(value, row, tmp_path):
    (tmp_path / "a.json").write_text(row.format(value))
    with pytest.raises(ValueError, match=r"a\.json") as error:
        load_problems(tmp_path / "a.json")
    assert len(str(error.value)) < 300 and "\n" not in str(error.value)


def test_a_text_that_cannot_be_written_is_not_read(tmp_path):
    (tmp_path / "a.json").write_text('{"problem": "1 \\ud800", "answer": 2}')
    with pytest.raises(ValueError, match=r"a\.json:1: the problem holds half a surrogate pair"):
        load_problems(tmp_path / "a.json")
    (tmp_path / "a.json").write_text('{"problem": "\\ud83d\\ude00?", "answer": 2}')
    assert load_problems(tmp_path / "a.json")[0].problem == "\U0001f600?"


def is_safe(call):
    """Return whether a call runs no code that it is given."""
    name = ast.unparse(call.func)
    options = {word.arg: ast.unparse(word.value) for word in call.keywords}
    doors = {"eval", "exec", "os.system", "os.popen", "pickle.load", "pickle.loads"}
    switches = {options.get("trust_remote_code", "False"), options.get("shell", "False")}
    if name in doors or switches != {"False"}:
        return False
    if name == "torch.load":
        return options.get("weights_only") in {"True", "weights_only"}  # as Lightning was told
    if name.startswith("yaml."):
        writers = {"yaml.safe_dump", "yaml.SafeDumper.add_multi_representer"}
        safe = name in writers | {"yaml.safe_load"}
        return safe or options.get("Loader") == "yaml.SafeLoader"
    return True


@pytest.mark.parametrize(
    ("call", "safe"),
    [
        ("eval(text)", False),
        ("run(command, shell=True)", False),
        ("load(name, trust_remote_code=trust)", False),
        ("torch.load(path)", False),
        ("torch.load(path, weights_only=True)", True),
        ("torch.load(path, weights_only=True, trust_remote_code=True)", False),
        ("yaml.load(text)", False),
        ("yaml.load(text, Loader=yaml.SafeLoader)", True),
        ("run(command)", True),
    ],
)
def test_a_door_is_known_when_it_is_seen(call, safe):
    assert is_safe(ast.parse(call, mode="eval").body) == safe


@pytest.mark.parametrize("directory", ["lightning_vcppo", "callbacks"])
def test_no_source_opens_a_door(directory):
    unsafe = [
        f"{path}:{node.lineno}"
        for path in sorted((ROOT / directory).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and not is_safe(node)
    ]
    assert unsafe == []


# Secrets


def test_no_secret_of_the_environment_is_written(tiny_actor, tmp_path, monkeypatch, capfd):
    for name, secret in SECRETS.items():
        monkeypatch.setenv(name, secret)
    run = tmp_path / "run"
    wandb.finish()  # one that another test has left would go on
    vcppo(
        *("fit", f"--model.actor={tiny_actor}", *ROLLOUTS, "--loggers=[csv,wandb,tensorboard]"),
        "--trainer.limit_train_batches=2",
        f"--trainer.default_root_dir={run}",
    )
    wandb.finish()
    write_report([run])
    files = [path for path in run.rglob("*") if path.is_file()]
    kinds = {path.suffix for path in files}
    assert {".csv", ".yaml", ".jsonl", ".html", ".wandb", ".ckpt", ".safetensors", ".log"} <= kinds
    assert [path for path in files if MARK in path.read_bytes()] == []
    printed = capfd.readouterr()
    assert MARK.decode() not in printed.out + printed.err


# Texts


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain 5, Käse 数学 ½", "plain 5, Käse 数学 ½"),
        ("\x1b[2J", r"\x1b[2J"),
        ("a\nb\r\x08\x07", r"a\nb\r\x08\x07"),
        ("\u202e", r"\u202e"),
        ("\x9b2J", r"\x9b2J"),
        ("\ud800", r"\ud800"),
    ],
)
def test_printable_texts_move_no_cursor(text, shown):
    assert printable(text) == shown


def test_what_a_model_writes_does_not_reach_the_terminal_raw(tmp_path, capsys):
    hostile = record(rf"\boxed{{2{CLEAR_SCREEN}}}", source=f"x{CLEAR_SCREEN}:1", correct=True)
    write_records(tmp_path / "a.jsonl", [hostile])
    regrade.regrade(str(tmp_path / "a.jsonl"))
    out = capsys.readouterr().out
    assert "now wrong" in out and r"\x1b[2J" in out
    assert not {"\x1b", "\x07", "\u202e"} & set(out)


def test_what_a_data_file_holds_does_not_reach_the_terminal_raw(tmp_path, monkeypatch, capsys):
    (tmp_path / "a.jsonl").write_text(json.dumps({"problem": "1?", CLEAR_SCREEN: 2}))
    with pytest.raises(ValueError, match=r"\\x1b\[2J"):
        load_problems(tmp_path / "a.jsonl")
    monkeypatch.setattr(
        lightning_cli, "main", mock.Mock(side_effect=ValueError(f"a: {CLEAR_SCREEN}"))
    )
    with pytest.raises(SystemExit):
        run_program("fit")
    assert "\x1b" not in capsys.readouterr().err


def test_a_spreadsheet_sees_no_formula(tmp_path):
    cells = ["=1+1", "+1", "-1", "@SUM(1)", "\tx", "aime:1", "", None, -1.5]
    write_csv(tmp_path / "a.csv", ["=a"], [[cell] for cell in cells])
    rows = (tmp_path / "a.csv").read_text().split("\n")
    assert rows[:-1] == [
        "=a",
        "'=1+1",
        "'+1",
        "'-1",
        "'@SUM(1)",
        "'\tx",
        "aime:1",
        '""',
        '""',
        "-1.5",
    ]


def test_tensorboard_shows_a_response_as_text():
    plugin_util = pytest.importorskip("tensorboard.plugin_util")
    hostile = "![x](http://a.b/c.png) [y](http://a.b) <img src=x> <a href=z>t</a> *b* `c` | # d"
    table = media._markdown(["response"], [[hostile]])
    html = str(plugin_util.markdown_to_safe_html(table))
    assert not [tag for tag in ("<img", "<a ", "<em>", "<code>") if tag in html]
    assert "![x](http://a.b/c.png)" in html
    assert "&lt;img src=x&gt;" in html


def test_thinking_tags_that_are_special_tokens_still_end_the_thinking(tiny_actor, tmp_path):
    actor = loading.load_actor(str(tiny_actor))
    tokenizer = loading.load_tokenizer(str(tiny_actor))
    tags = ["<|channel|>", "<|message|>", "[THINK]", "[/THINK]"]
    tokenizer.add_special_tokens({"additional_special_tokens": [*tags, "<|tool|>"]})
    actor.resize_token_embeddings(len(tokenizer))
    actor.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    module = make_module(tmp_path)
    text = r"[THINK]\boxed{1}[/THINK]<|tool|>so \boxed{2}<eos>"
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert module.sampler.response_text([5], ids) == r"[THINK]\boxed{1}[/THINK]so \boxed{2}"
    thought = r"<|channel|>analysis<|message|>\boxed{1}"
    ids = tokenizer(thought, add_special_tokens=False).input_ids
    assert module.sampler.response_text([5], ids) == thought  # and so earns nothing


def test_a_file_without_responses_cannot_be_graded(tmp_path):
    (tmp_path / "a.jsonl").write_text("")
    with pytest.raises(ValueError, match=r"a\.jsonl: no responses"):
        regrade.regrade(str(tmp_path / "a.jsonl"))
