"""Run `vcppo export`: write a checkpoint as Hugging Face directories, or a critic for others.

A checkpoint is one file, or a directory of shards (torch.distributed.checkpoint), which is read
without a process group. Nothing in it is executed: only tensors, numbers and text are read.
"""

from __future__ import annotations

import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lightning_vcppo.checkpointing.format import (
    META_FILE,
    Keys,
    is_sharded_checkpoint,
    read_file,
    reading_shards,
)
from lightning_vcppo.checkpointing.safe_loading import refuse_code_in
from lightning_vcppo.cli.parser import run_function
from lightning_vcppo.common.errors import require
from lightning_vcppo.models import hf_folders, loading
from lightning_vcppo.models.critic import load_critic, require_value_head
from lightning_vcppo.models.critic_layouts import PLACES, Layout, how_to_load, write_layout
from lightning_vcppo.models.fingerprints import model_fingerprint
from lightning_vcppo.models.hf_folders import write_folder
from lightning_vcppo.models.lora import adapt
from lightning_vcppo.settings import LoRASettings, ValueSettings


def main(arguments: Sequence[str]) -> None:
    """Run `vcppo export`.

    Args:
        arguments: Arguments after the command's name.
    """
    run_function(export, "export", arguments)


def export(
    ckpt_path: str,
    output: str,
    overwrite: bool = False,
    actor: str | None = None,
    critic: str | None = None,
    layout: Layout | None = None,
) -> None:
    """Write the networks of a checkpoint as Hugging Face directories: `actor/`, `critic/`.

    Adapters are merged into the weights. The directories appear when all of them are complete.

    Args:
        ckpt_path: File or directory of a checkpoint, of any strategy; with a layout also the
            directory of a critic.
        output: Directory to write to.
        overwrite: Replace existing directories.
        actor: Base model of the actor's adapters, if it has been moved since the run.
        critic: The same for the critic; None means `actor`, if both had the same base.
        layout: Write only the critic, in the form in which this trainer loads it.

    Raises:
        ValueError: If there is no such checkpoint, a directory exists already, the base of the
            adapters is missing or has other weights, or the trainer cannot load such a critic.
    """
    source, target = Path(ckpt_path).expanduser(), Path(output).expanduser()
    moved = {"actor": actor, "critic": critic}
    if layout is not None:
        _export_critic(source, target, layout, overwrite, moved)
        return
    require(
        not (source / "config.json").exists(),
        f"--ckpt_path: {source} is a Hugging Face directory already; --layout={'|'.join(PLACES)} "
        "writes its critic for another trainer",
    )
    checkpoint = read_checkpoint(source)
    names = list(checkpoint[Keys.FOLDERS])
    with _staged(target, names, overwrite) as staging:
        tokenizer = _tokenizer(checkpoint)
        for name in names:
            write_folder(staging / name, _network(name, checkpoint, moved), tokenizer)
    print("\n".join(str(target / name) for name in names))


def _export_critic(
    source: Path, target: Path, layout: Layout, overwrite: bool, moved: dict[str, str | None]
) -> None:
    """Write the critic of a checkpoint or of a directory, and print how to load it."""
    place = PLACES[layout]
    with _staged(target, [place], overwrite) as staging:
        if (source / "config.json").exists():
            require_value_head(str(source), "--ckpt_path: ")
            described = getattr(loading.load_config(str(source)), "value_head", None) or {}
            critic = load_critic(str(source), ValueSettings(**described)).model
            tokenizer = loading.load_tokenizer(str(source))
        else:
            checkpoint = read_checkpoint(source)
            require("critic" in checkpoint[Keys.FOLDERS], f"--ckpt_path: {source} has no critic")
            critic = _network("critic", checkpoint, moved)
            tokenizer = _tokenizer(checkpoint)
        write_layout(staging / place, critic, tokenizer, layout)
    print(how_to_load(target / place, layout))


def _tokenizer(checkpoint: Mapping[str, Any]) -> PreTrainedTokenizerBase:
    with tempfile.TemporaryDirectory() as directory:
        hf_folders.put_files(checkpoint[Keys.TOKENIZER], Path(directory))
        return loading.load_tokenizer(directory)


@contextmanager
def _staged(target: Path, names: Sequence[str], overwrite: bool) -> Iterator[Path]:
    """Yield a directory whose contents are moved to the target when the body has succeeded."""
    staging = target / ".partial"
    taken = [str(target / name) for name in names if (target / name).exists()]
    require(overwrite or not taken, f"{taken and taken[0]} exists; --overwrite replaces it")
    is_new = not target.exists()
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        yield staging
        for name in names:
            shutil.rmtree(target / name, ignore_errors=True)
            (staging / name).rename(target / name)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        if is_new:
            with suppress(OSError):  # only an empty directory can be removed
                target.rmdir()


def read_checkpoint(path: Path) -> Any:
    """Read a checkpoint's networks and weights, without its optimizers.

    Raises:
        ValueError: If it is not a checkpoint, or of a version that did not describe its networks.
    """
    require(path.exists(), f"--ckpt_path: {path} does not exist")
    checkpoint = _read_parts(path) if path.is_dir() else read_file(path)
    require(
        isinstance(checkpoint, dict)
        and {Keys.FOLDERS, Keys.WEIGHTS, Keys.TOKENIZER} <= checkpoint.keys()
        and checkpoint[Keys.FOLDERS].keys() <= hf_folders.KINDS.keys(),
        f"--ckpt_path: {path} does not describe its networks: it was written by another program "
        "or by a version before `vcppo export`",
    )
    return checkpoint


def _read_parts(path: Path) -> Any:
    require(
        is_sharded_checkpoint(path),
        f"--ckpt_path: {path} is no checkpoint: expected a file, or a directory with {META_FILE}",
    )
    checkpoint = read_file(path / META_FILE)
    refuse_code_in(path)
    state: dict[str, Tensor] = {}
    with reading_shards(path):
        reader = FileSystemReader(path)
        for key, stored in reader.read_metadata().state_dict_metadata.items():
            root, _, name = key.partition(".")
            if root == Keys.WEIGHTS and isinstance(stored, TensorStorageMetadata):
                state[name] = torch.empty(stored.size, dtype=stored.properties.dtype)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")
            load({Keys.WEIGHTS: state}, storage_reader=reader, no_dist=True)
    return checkpoint | {Keys.WEIGHTS: state}


def _network(
    name: str, checkpoint: dict[str, Any], moved: dict[str, str | None]
) -> PreTrainedModel:
    """Return a network with the checkpoint's weights; `moved` has the new paths of bases."""
    prefix, _ = hf_folders.KINDS[name]
    state: dict[str, Tensor] = {
        key.removeprefix(prefix): weight
        for key, weight in checkpoint[Keys.WEIGHTS].items()
        if key.startswith(prefix)
    }
    model = hf_folders.rebuild(name, checkpoint[Keys.FOLDERS][name])
    lora = checkpoint.get(Keys.ADAPTERS)
    if lora is not None and name not in lora["bases"]:
        lora = None  # a side critic has no adapters
    if lora is not None:
        bases = lora["bases"]
        if moved[name] is None and bases[name]["source"] == bases["actor"]["source"]:
            moved = moved | {name: moved["actor"]}
        model = _base(name, model, bases[name], moved[name])
        adapt(model, LoRASettings(**lora["settings"]), seed=0)
    missing, unread = model.load_state_dict(state, strict=False, assign=lora is None)
    untrained = {key for key in missing if lora is None or ".lora_" in key}
    require(
        not untrained and not unread,
        f"--ckpt_path: weights of its {name} are missing or unknown: {[*untrained, *unread][:3]}",
    )
    model.tie_weights()
    return model


def _base(
    name: str, described: PreTrainedModel, saved: dict[str, str], given: str | None
) -> PreTrainedModel:
    """Load the base of a network's adapters."""
    source = given or saved["source"]
    try:
        if name == "critic":
            settings = ValueSettings(**described.config.value_head)
            model = load_critic(source, settings).model
        else:
            model = loading.load_actor(source)
    except ValueError as error:
        raise ValueError(f"{error}; set --{name} to the base of its adapters") from error
    require(
        model_fingerprint(model) == saved.get("fingerprint"),
        f"--{name}: {source} holds other weights than those on which the adapters were trained",
    )
    return model
