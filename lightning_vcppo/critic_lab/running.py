"""Fit a critic on stored rollouts, and write it to a directory."""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities import rank_zero_warn
from rich import get_console

from lightning_vcppo.algorithm.value_pretraining import StopRule
from lightning_vcppo.common.errors import require, require_seed
from lightning_vcppo.common.files import complete_file
from lightning_vcppo.critic_lab.card import write_card
from lightning_vcppo.critic_lab.fitting import CriticData, CriticFit
from lightning_vcppo.critic_lab.hints import Hints
from lightning_vcppo.critic_lab.measures import Measures
from lightning_vcppo.critic_lab.remarks import of_fit
from lightning_vcppo.critic_lab.store import TokenStore
from lightning_vcppo.interchange import Importer, read_responses
from lightning_vcppo.interchange.reading import Reading
from lightning_vcppo.models import loading
from lightning_vcppo.models.hf_folders import write_folder
from lightning_vcppo.rollouts.records import SavedResponse
from lightning_vcppo.settings import OptimizerSettings, ValueSettings


def read_rollouts(
    path: str, model: str, *, drop_invalid: bool = False
) -> tuple[TokenStore, dict[str, Any]]:
    """Read stored rollouts of this package or of another trainer, and their origin.

    Args:
        path: File, pattern or directory.
        model: Directory or hub id of the tokenizer for missing token ids.
        drop_invalid: Skip rows that cannot be read, with a warning.

    Raises:
        ValueError: If there are no responses, rows cannot be read, or they come from a model with
            other tokens.
    """
    tokenizer = loading.load_tokenizer(model)
    reading = Reading()
    importer = Importer(tokenizer, reading=reading)
    origin: dict[str, Any] = {}

    def records() -> Iterator[Any]:
        found = read_responses([path], drop_invalid=drop_invalid, reading=reading)
        for record in importer.records(found):
            if not origin and isinstance(record, SavedResponse):
                origin.update(record.origin)
            yield record

    store = TokenStore(records(), _vocabulary(model, len(tokenizer)))
    if reading.invalid:
        rank_zero_warn(f"skipped {reading.invalid} rows that cannot be read: {reading}")
    require(
        min(store.rewards) < max(store.rewards),
        f"{path}: all {len(store)} responses have the reward {store.rewards[0]:g}, so there is "
        "nothing for a critic to learn",
    )
    return store, origin


def _vocabulary(model: str, tokens: int) -> int:
    size = getattr(loading.load_config(model), "vocab_size", None)
    return max(int(size), tokens) if size else tokens


def within(value: ValueSettings, store: TokenStore) -> ValueSettings:
    """Return settings with bounds that include all rewards; scalar heads ignore them."""
    low, high = store.reward_range
    return replace(value, value_min=min(value.value_min, low), value_max=max(value.value_max, high))


def fit_critic(
    rollouts: str,
    model: str,
    output: str,
    value: ValueSettings = ValueSettings(),
    critic_optimizer: OptimizerSettings = OptimizerSettings(lr=1e-5),
    mini_batch_size: int = 128,
    max_tokens_per_batch: int = 16384,
    max_epochs: int = 20,
    patience: int = 3,
    min_delta: float = 0.005,
    held_out_share: float = 0.2,
    seed: int = 0,
    actor: str | None = None,
    drop_invalid: bool = False,
    accelerator: str = "auto",
    devices: int | str = "auto",
    strategy: str = "auto",
    precision: str = "32-true",
) -> Measures:
    """Fit a critic on stored rollouts, without an actor, until it no longer improves.

    It writes the best critic with its card to `OUTPUT/critic`, its measures to `OUTPUT/fit.json`,
    and a checkpoint after each pass. If it is called again, it resumes.

    Args:
        rollouts: File, pattern or directory, of this package or of another trainer.
        model: Directory or hub id of the backbone.
        output: Directory to write to.
        value: The head and its loss; its bounds are widened to include all rewards.
        critic_optimizer: Optimizer of the critic.
        mini_batch_size: Responses of an update, over all ranks.
        max_tokens_per_batch: Tokens of one forward pass on one device.
        max_epochs: Number of passes after which the fit ends.
        patience: Number of passes without a rise of the held-out R^2 after which the fit ends.
        min_delta: Smallest rise of R^2 that counts, in one of these passes or in all together.
        held_out_share: Share of the prompts on which the critic is judged.
        seed: Seed of split and order.
        actor: Directory or hub id of the actor whose activations a side critic reads.
        drop_invalid: Skip rows that cannot be read.
        accelerator: As in Lightning.
        devices: As in Lightning.
        strategy: As in Lightning: auto, ddp or fsdp2.
        precision: As in Lightning.

    Returns:
        The measures of the best critic on held-out responses.

    Raises:
        ValueError: If no critic can be fitted on the rollouts, or the output has a fitted critic.
    """
    directory = Path(output)
    _check(directory, value, actor, seed)
    require(mini_batch_size >= 1, f"mini_batch_size: expected >= 1, got {mini_batch_size}")
    require(max_epochs >= 1, f"max_epochs: expected >= 1, got {max_epochs}")
    require(0 < held_out_share < 1, f"held_out_share: expected in (0, 1), got {held_out_share}")
    L.seed_everything(seed, verbose=False)
    store, origin = read_rollouts(rollouts, model, drop_invalid=drop_invalid)
    value = within(value, store)
    hints = Hints(store, loading.load_tokenizer(model), value)
    data = CriticData(store, hints, held_out_share, mini_batch_size, seed)
    module = CriticFit(
        model,
        data,
        value,
        critic_optimizer,
        StopRule(max_epochs, 1, patience, min_delta),
        max_tokens=max_tokens_per_batch,
        seed=seed,
        actor=actor,
    )
    trainer = _trainer(directory, max_epochs, accelerator, devices, strategy, precision)
    seconds = _run(trainer, module, data, directory / "checkpoints" / "last.ckpt")
    facts = {"rollouts": rollouts, "seconds": seconds, "seed": seed}
    facts |= {"held_out_share": held_out_share, "value": asdict(value)}
    settings = _settings(value, critic_optimizer, mini_batch_size, seed)
    _write(directory, module, settings, origin, facts)
    assert module.measures is not None
    return module.measures


def _check(directory: Path, value: ValueSettings, actor: str | None, seed: int) -> None:
    require_seed("seed", seed)
    require(
        not (directory / "critic").exists(),
        f"{directory}: holds a fitted critic; name another --output",
    )
    require(
        (actor is not None) is (value.architecture == "side"),
        "actor: only a side critic reads one; set both --actor and --value.architecture=side, or "
        "neither",
    )


def _run(trainer: L.Trainer, module: CriticFit, data: CriticData, last: Path) -> float:
    """Fit and validate, resuming from the last checkpoint; return the seconds of the fit."""
    resume = {"ckpt_path": last, "weights_only": False} if last.exists() else {}
    start = time.perf_counter()
    trainer.fit(module, datamodule=data, **resume)  # type: ignore[arg-type]
    seconds = time.perf_counter() - start
    trainer.validate(module, datamodule=data, verbose=False)
    return seconds


def _trainer(
    directory: Path,
    max_epochs: int,
    accelerator: str,
    devices: int | str,
    strategy: str,
    precision: str,
) -> L.Trainer:
    return L.Trainer(
        max_epochs=max_epochs,
        accelerator=accelerator,
        devices=devices,
        strategy=strategy,
        precision=precision,  # type: ignore[arg-type]
        default_root_dir=directory,
        logger=CSVLogger(directory, name="metrics", version=""),
        callbacks=[
            ModelCheckpoint(
                directory / "checkpoints", filename="last", save_on_train_epoch_end=True
            )
        ],
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        reload_dataloaders_every_n_epochs=1,
        use_distributed_sampler=False,
        enable_model_summary=False,
        enable_progress_bar=get_console().is_terminal,  # a log has a line per pass
    )


def _write(
    directory: Path,
    module: CriticFit,
    settings: dict[str, Any],
    origin: dict[str, Any],
    facts: dict[str, Any],
) -> None:
    """Write the critic, its card and its measures; call it on every rank."""
    assert module.measures is not None and module.critic is not None
    weights = module.weights()
    if not module.trainer.is_global_zero:
        return
    critic, base, store = module.critic.model, module.model_source, module.data.store
    tokens = _tokens(store) * module.progress.rollouts
    updates = module.updater.updates_done
    warnings = of_fit(module.measures, module.progress, updates, module.updater.settings.lr)
    facts = {
        "model": base,
        **facts,
        "responses": len(store),
        "settings": settings,
        "epochs": module.progress.rollouts,
        "best_epoch": module.progress.best_rollout,
        "updates": updates,
        "tokens_per_s": tokens / facts["seconds"],
        "peak_mib": _peak_mib(),
        "parameters": sum(p.numel() for p in critic.parameters()),
        "measures": module.measures.as_json(),
        "warnings": warnings,
    }
    write_folder(directory / "critic", critic, loading.load_tokenizer(base), weights)
    of_passes = f"{module.progress.rollouts} passes ({updates} updates)"
    fitted = f"{of_passes}; the best critic is that after pass {module.progress.best_rollout}"
    write_card(
        directory / "critic",
        base,
        module.measures,
        settings,
        origin,
        module.value,
        fitted=fitted,
        warnings=warnings,
    )
    with complete_file(directory / "fit.json") as file:
        json.dump(facts, file, indent=1)


def _settings(
    value: ValueSettings, optimizer: OptimizerSettings, size: int, seed: int
) -> dict[str, Any]:
    own, usual = asdict(value), asdict(ValueSettings())
    changed = {f"value.{key}": v for key, v in own.items() if v != usual[key]}
    return {
        "value.head": value.head,
        **changed,
        "critic_optimizer.lr": optimizer.lr,
        "mini_batch_size": size,
        "seed": seed,
    }


def _tokens(store: TokenStore) -> int:
    return sum(store.prompt_lengths) + sum(store.response_lengths)


def _peak_mib() -> float:
    """Return the peak memory of the GPU, or of the process if there is no GPU."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used / (2**20 if sys.platform == "darwin" else 2**10)
