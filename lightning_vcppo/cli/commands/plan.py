"""Run `vcppo plan`: estimate memory and time of a run; no weights are loaded or downloaded.

    vcppo plan --config qwen2.5_7b --gpus 8 --gpu_memory 80

It reads the configs and flags of `fit`, and of the model only its config. The arithmetic is in
`planning/`, and a short trial that measures the speed of a CPU in `cli/cpu_rates.py`; this file has
its inputs and its printing.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any, Literal

import torch
from jsonargparse import Namespace
from rich.console import Console
from rich.table import Table
from transformers import AutoConfig
from typing_extensions import override

from lightning_vcppo.cli import lightning_cli
from lightning_vcppo.cli.cpu_rates import measured_rates
from lightning_vcppo.common.errors import OneLineArguments, require
from lightning_vcppo.common.lists import as_list
from lightning_vcppo.data.sizes import PROMPTS_PER_ROLLOUT
from lightning_vcppo.models import loading
from lightning_vcppo.planning.advice import advise, fits, starved
from lightning_vcppo.planning.alternatives import (
    ahead_on_the_same_devices,
    describe,
    in_bfloat16,
    in_turn,
)
from lightning_vcppo.planning.memory import Memory, engine_needs, offloaded, plan_memory
from lightning_vcppo.planning.run import GB, PRECISIONS, SERVER_BYTES, Run
from lightning_vcppo.planning.seconds import DEVICES, Rates, plan_seconds, rounded
from lightning_vcppo.planning.shapes import PUBLISHED, ModelShape
from lightning_vcppo.planning.split import best_split
from lightning_vcppo.settings.updates import ALL_LINEAR

PRECISION_NAMES = {None: "32-true", "32": "32-true", "64": "64-true", "16": "16-mixed"} | {
    "bf16": "bf16-mixed"
}
MOMENTS = {"SGD": 0, "RMSprop": 1, "Adagrad": 1, "Lion": 1}
"""Number of state values per weight, by optimizer; all others keep 2, like Adam."""


class PlanCLI(lightning_cli.VCPPOCLI):
    """Reads the configs and flags of `fit`, and runs nothing."""

    @override
    def _set_seed(self) -> None:
        """Do not seed anything."""

    @override
    def instantiate_classes(self) -> None:
        """Build nothing."""

    @override
    def _run_subcommand(self, subcommand: str) -> None:
        """Run nothing."""


def main(args: Sequence[str]) -> None:
    """Print the plan of a run.

    Args:
        args: Arguments after `vcppo plan`: its own flags, and those of `fit`.

    Raises:
        ValueError: If the run is of another module, or its model has no readable config.
    """
    own, rest = _parser().parse_known_args(args)
    config = lightning_cli.main(["fit", *rest], PlanCLI).config.fit
    require(own.device in (*DEVICES, None), f"--device: expected one of {', '.join(DEVICES)}")
    for flag in ("gpus", "gpus_per_node", "gpu_memory", "response_length"):
        given = getattr(own, flag)
        require(given is None or given > 0, f"--{flag}: expected more than 0, got {given}")
    run = read_run(config, own)
    tf32, device = config.float32_matmul_precision != "highest", DEVICES[_device(own)]
    if run.device == "cpu":
        print_plan(run, measured_rates(run), own.gpus_per_node)
        return

    def seconds(run: Run) -> float:
        rates = device.rates(run.precision, tf32=tf32)
        return plan_seconds(run, rates, own.gpus_per_node).total

    print_plan(run, device.rates(run.precision, tf32=tf32), own.gpus_per_node)
    _print_alternatives(config, own, run, seconds)


def _parser() -> OneLineArguments:
    parser = OneLineArguments(
        "vcppo plan",
        description="Estimate a run: memory by part, seconds per rollout, what to change.",
        epilog="All flags of `vcppo fit` are accepted: --config, --model.*, --trainer.*, ...",
        allow_abbrev=False,
    )
    parser.add_argument("--gpus", type=int, help="number of GPUs; default: the trainer's devices")
    parser.add_argument("--gpus_per_node", type=int, default=8, help="default 8")
    parser.add_argument("--gpu_memory", type=float, help="GB of each GPU; default: the device's")
    parser.add_argument("--device", help=f"default h100; one of {', '.join(DEVICES)}")
    parser.add_argument(
        "--response_length",
        type=int,
        help="mean length of responses, for the time; default: model.sampling.max_response_length",
    )
    return parser


def _device(own: argparse.Namespace) -> str:
    return own.device or "h100"


# What is planned -----------------------------------------------------------------------------


def read_run(config: Namespace, own: argparse.Namespace) -> Run:
    """Return the inputs of the arithmetic from a parsed config.

    Args:
        config: Config of `fit`.
        own: Flags of `vcppo plan`.

    Raises:
        ValueError: If the run is of another module, or for an unknown strategy.
    """
    name = config.model.class_path.rpartition(".")[2]
    require(name == "VCPPOModule", f"vcppo plan: supports runs of VCPPOModule, not of {name}")
    settings, trainer = config.model.init_args, config.trainer
    sampling, engine = settings.sampling, settings.engine
    update = settings["update"]  # a Namespace has a method `update`
    actor = shape_from(settings.actor)
    here = trainer.accelerator == "auto" and torch.cuda.is_available()
    on_gpu = own.gpus is not None or own.device is not None
    on_gpu = on_gpu or here or trainer.accelerator in ("gpu", "cuda")
    devices = own.gpus or _count(trainer.devices) * _count(trainer.num_nodes)
    memory = own.gpu_memory * GB if own.gpu_memory else _memory(own, on_gpu, devices)
    strategy, shards = _strategy(trainer.strategy, devices)
    precision = PRECISION_NAMES.get(trainer.precision, str(trainer.precision))
    require(precision in PRECISIONS, f"--trainer.precision: vcppo plan cannot use {precision}")
    exact = precision in ("32-true", "64-true") and not engine.name.startswith("vllm")
    given = settings.policy.importance_correction not in ("auto", "off")
    corrected = given or engine.rollouts_ahead > 0
    source = settings.policy.old_logprobs
    recomputed = source == "recomputed" or (source == "auto" and (corrected or not exact))
    targets = settings.lora.target_modules
    device: Literal["cpu", "cuda"] = "cuda" if on_gpu else "cpu"
    critic, side_weights, value = None, 0, settings["value"]
    if settings.advantage.estimator == "gae" and value.architecture == "side":
        side_weights = actor.ladder(value.side_taps, value.side_width)
    elif settings.advantage.estimator == "gae":
        critic = actor if settings.critic is None else shape_from(settings.critic)
    return Run(
        actor=actor,
        critic=critic,
        side_weights=side_weights,
        side_together=update.order == "together",
        reference=bool(settings.policy.kl_coef),
        prompt_length=config.data.max_prompt_length,
        response_length=sampling.max_response_length,
        mean_response_length=own.response_length or sampling.max_response_length,
        prompts=config.data.prompts_per_rollout or PROMPTS_PER_ROLLOUT,
        num_generations=sampling.num_generations,
        mini_batch=update.ppo_mini_batch_size,
        critic_mini_batch=update.critic_mini_batch_size or update.ppo_mini_batch_size,
        epochs=update.ppo_epochs,
        critic_epochs=update.critic_epochs or update.ppo_epochs,
        max_tokens=update.ppo_max_token_len_per_gpu,
        max_num_seqs=engine.max_num_seqs,
        engine=engine.name,
        engine_share=engine.gpu_memory_utilization,
        engine_sleeps=engine.sleep and on_gpu,
        engine_bytes=_engine_bytes(engine, precision, device),
        sampling_devices=_sampling_devices(engine, devices, device),
        precision=precision,
        strategy=strategy,
        devices=devices,
        shards=shards,
        moments=_moments(settings.actor_optimizer),
        critic_frozen=value.freeze,
        master_weights=settings.master_weights,
        lora_rank=settings.lora.rank,
        lora_targets=() if targets == ALL_LINEAR else tuple(as_list(targets)),
        checkpointing=settings.activation_checkpointing,
        offload=tuple(as_list(settings.offload)),
        kernels=settings.kernels,
        logprob_readings=int(recomputed) + (settings.value.target_correction == "importance"),
        device=device,
        memory=int(memory),
    )


def shape_from(source: str | Mapping[str, Any] | Namespace) -> ModelShape:
    """Return the shape of a model from its config only: published, in a directory, or on the hub.

    Raises:
        ValueError: If there is no config, or it is of another type of model.
    """
    if isinstance(source, str):
        if source in PUBLISHED:
            return PUBLISHED[source]
        return shape_of(loading.load_config(source), source)
    given = dict(source)
    return shape_of(AutoConfig.for_model(given.pop("model_type"), **given), "critic config")


def shape_of(config: Any, name: str) -> ModelShape:
    """Return the shape that a transformers config describes.

    Raises:
        ValueError: If it is not a decoder of the Llama or Qwen family.
    """
    try:
        heads = config.num_attention_heads
        return ModelShape(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            num_layers=config.num_hidden_layers,
            num_heads=heads,
            num_kv_heads=getattr(config, "num_key_value_heads", None) or heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
            intermediate_size=config.intermediate_size,
            tied=bool(config.tie_word_embeddings),
            qkv_bias=config.model_type == "qwen2" or bool(getattr(config, "attention_bias", 0)),
            qk_norm=config.model_type == "qwen3",
        )
    except AttributeError as error:
        raise ValueError(
            f"{name}: vcppo plan supports decoders of the Llama and Qwen families: {error}"
        ) from error


def _count(devices: Any) -> int:
    if isinstance(devices, list):
        return len(devices)
    return int(devices) if str(devices).isdigit() and int(devices) > 0 else 1


def _memory(own: argparse.Namespace, on_gpu: bool, devices: int) -> float:
    if on_gpu:
        return DEVICES[_device(own)].memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / devices


def _strategy(given: Any, devices: int) -> tuple[Any, int]:
    """Return one of three names of strategies, and the number of devices that share a copy."""
    arguments = {} if isinstance(given, str) else given.get("init_args") or {}
    name = given if isinstance(given, str) else given.class_path.rpartition(".")[2]
    if name in ("fsdp2", "FSDP2Strategy"):
        return "fsdp2", arguments.get("shards") or devices
    if name.startswith(("auto", "ddp", "DDP", "single", "Single")):
        return ("ddp" if devices > 1 else "single"), 1
    raise ValueError(f"--trainer.strategy: vcppo plan supports auto, ddp and fsdp2, not {name}")


def _engine_bytes(engine: Namespace, precision: str, device: str) -> int:
    """Return the bytes of a weight in vLLM: of the type in which the actor computes, or its own."""
    if engine.name == "vllm_server":
        return SERVER_BYTES[device]
    if "dtype" in engine.init_args:
        return 4 if "32" in str(engine.init_args["dtype"]) else 2
    return min(4, PRECISIONS[precision].compute)


def _sampling_devices(engine: Namespace, devices: int, device: str) -> int:
    """Return the number of devices that sample and do not train; each server is taken for one."""
    if engine.name == "vllm_server":
        return len(as_list(engine.urls))
    kind, _, index = str(engine.init_args.get("device", device)).partition(":")
    elsewhere = kind != device or int(index or 0) >= devices
    return int(engine.name == "transformers_copy" and elsewhere)


def _moments(optimizer: Any) -> int:
    name = optimizer.class_path.rpartition(".")[2]
    return 1 if optimizer.init_args.get("momentum") else MOMENTS.get(name, 2)


# Printing ------------------------------------------------------------------------------------


def print_plan(run: Run, rates: Rates, gpus_per_node: int) -> None:
    """Print memory, time, and changes that would help."""
    console = Console()
    phases = plan_memory(run)
    console.print(_memory_table(run, phases))
    console.print(_time_table(run, rates, gpus_per_node))
    if run.device == "cuda" and (split := best_split(run, rates, gpus_per_node)):
        console.print(split.sentence)
    if host := sum(offloaded(run).values()):
        console.print(f"{host / GB:.3g} GB in the host's memory for what is offloaded, each.")
    if fits(run):
        most = max(memory.total for memory in phases.values())
        console.print(f"It fits: at most {most / run.memory:.0%} of a device's memory.")
        return
    if starved(run):
        sampler = run.sampler
        console.print(
            f"vLLM needs {engine_needs(sampler) / GB:.1f} GB for its copy of the weights and one "
            f"response, more than its share ({sampler.engine_share:g} of {run.memory / GB:.0f} GB)."
        )
    changes, enough = advise(run)
    more = "" if len(changes) == 1 else ", each in addition to those before"
    console.print(f"It does not fit. What would help{more}:")
    for change in changes:
        text = f"  {change.flag}  ->  {change.peak / GB:.1f} GB"
        console.print(text, highlight=False, markup=False, soft_wrap=True)  # [a, b] is no markup
    if not enough:
        console.print("  It needs a smaller model, shorter responses or larger devices.")


def _print_alternatives(
    config: Namespace, own: argparse.Namespace, run: Run, seconds: Callable[[Run], float]
) -> None:
    """Print what the run would be in bfloat16 if it does not fit, or without sampling ahead."""
    console = Console()
    changes = [] if fits(run) else in_bfloat16(run)
    if changes:
        console.print(f"In bfloat16 instead of {run.precision}:")
    for change in changes:
        text = describe(change, read_run(_changed(config, change), own), seconds)
        console.print(f"  {text}", highlight=False, markup=False, soft_wrap=True)
    engine = config.model.init_args.engine
    if engine.rollouts_ahead and not run.sampling_devices:
        turns = read_run(_changed(config, in_turn(engine.name)), own)
        text = ahead_on_the_same_devices(run, turns, seconds)
        console.print(text, highlight=False, markup=False, soft_wrap=True)


def _changed(config: Namespace, change: Mapping[str, object]) -> Namespace:
    """Return a config of `fit` with other values of some settings."""
    changed = config.clone()
    for name, value in change.items():
        changed[name.replace("model.", "model.init_args.", 1)] = value
    return changed


def _memory_table(run: Run, phases: Mapping[str, Memory]) -> Table:
    spread = f"{run.strategy} of {run.shards} shards" if run.shards > 1 else run.strategy
    machine = "process" if run.device == "cpu" else "GPU"
    count = f"{run.devices} {machine}s, each" if run.devices > 1 else f"one {machine}"
    table = Table(
        title=f"GB of {count} of {run.memory / GB:.0f} GB; {spread}, {run.precision}",
        min_width=72,
    )
    table.add_column("part")
    for phase in phases:
        table.add_column(phase, justify="right")
    for part in (field.name for field in fields(Memory)):
        cells = [f"{getattr(memory, part) / GB:.3g}" for memory in phases.values()]
        table.add_row(part.replace("_", " "), *cells)
    table.add_section()
    table.add_row("together", *(f"{memory.total / GB:.3g}" for memory in phases.values()))
    return table


def _time_table(run: Run, rates: Rates, gpus_per_node: int) -> Table:
    seconds = plan_seconds(run, rates, gpus_per_node)
    responses = run.prompts * run.num_generations
    others = f", sampled on {run.sampling_devices} others" if run.sampling_devices else ""
    table = Table(
        title=f"Seconds of a rollout: {responses} responses of {run.mean_response_length} "
        f"tokens{others}",
        min_width=72,
    )
    for part in fields(seconds):
        table.add_column(part.name, justify="right")
    table.add_column("together", justify="right")
    table.add_row(
        *(rounded(getattr(seconds, part.name)) for part in fields(seconds)),
        rounded(seconds.total),
    )
    table.caption = (
        "measured on this machine: two layers"
        if run.device == "cpu"
        else "from data sheets, at 40 % of the arithmetic and 60 % of the bandwidths"
    )
    return table
