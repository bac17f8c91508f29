"""Run `vcppo serve`: vLLM's server for `--model.engine.name=vllm_server`, on separate devices.

    vcppo serve --model.actor DIRECTORY

It listens on the loopback address and answers only requests with its token. It starts without
weights: the trainer sends the actor's weights before each rollout.
"""

from __future__ import annotations

import argparse
import ipaddress
import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any
from unittest import mock

from lightning_vcppo.common.errors import OneLineArguments, require
from lightning_vcppo.common.server_token import VARIABLE, make_token

WORKER = "lightning_vcppo.generation.vllm_worker"
LOOPBACK = "127.0.0.1"


def main(arguments: Sequence[str]) -> None:
    """Run `vcppo serve` until a signal ends it.

    Args:
        arguments: Arguments after the command's name.

    Raises:
        ValueError: If vLLM is not installed, or an argument is wrong.
    """
    own = _parser().parse_args(arguments)
    require(1 <= own.port <= 65535, f"--port: expected 1..65535, got {own.port}")
    arguments_of_vllm = _init_args(own.init_args)

    import torch

    from lightning_vcppo.generation.vllm_engine import (
        NOT_INSTALLED,
        config_for_vllm,
        is_installed,
    )
    from lightning_vcppo.generation.weight_transfer import require_nccl
    from lightning_vcppo.models import loading

    require(is_installed(), f"vcppo serve: {NOT_INSTALLED}")
    if own.weight_transfer == "nccl":
        require_nccl()
    on_cpu = not torch.cuda.is_available()
    config = loading.load_config(own.actor)
    config = config_for_vllm(config, loading.class_name(config), untie=on_cpu)
    token, file = make_token(own.token_file)
    os.environ |= {VARIABLE: token, "VLLM_API_KEY": token, "VLLM_SERVER_DEV_MODE": "1"}
    os.environ["VCPPO_SERVER_PID"] = str(os.getpid())
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    with tempfile.TemporaryDirectory(prefix="vcppo-serve-") as directory:
        config.save_pretrained(directory)
        flags = flags_for_vllm(own, arguments_of_vllm, on_cpu=on_cpu)
        print(
            f"vcppo serve: {own.actor} at {url(own.host, own.port)}, token in "
            f"{file or f'${VARIABLE}'}; it answers after vLLM has started",
            flush=True,
        )
        if not _is_loopback(own.host):
            print(
                "vcppo serve: other machines can reach this address, and traffic is not encrypted; "
                "use it only inside a network that you trust",
                file=sys.stderr,
                flush=True,
            )
        with mock.patch.object(sys, "argv", ["vcppo serve", f"--model={directory}", *flags]):
            from vllm.entrypoints.launchers.api_server.entry import main as run_vllm

            run_vllm()


def url(host: str, port: int) -> str:
    """Return the address of the server for a trainer."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def flags_for_vllm(
    own: argparse.Namespace, init_args: Mapping[str, Any], *, on_cpu: bool
) -> list[str]:
    """Return the flags of `vllm serve`.

    Args:
        own: The arguments of `vcppo serve`.
        init_args: The user's arguments of vLLM, which override ours.
        on_cpu: Whether it runs on the CPU.
    """
    from lightning_vcppo.generation.vllm_engine import COMPLETE_PROMPTS

    arguments: dict[str, Any] = {
        "host": own.host,
        "port": own.port,
        "served_model_name": "actor",
        "enable_scale_out": True,  # the endpoint of token ids
        "load_format": "dummy",  # the weights come from the trainer
        "skip_tokenizer_init": True,
        "generation_config": "vllm",  # do not use the model's defaults of sampling
        "dtype": "float32" if on_cpu else "bfloat16",
        "logprobs_mode": "processed_logprobs",  # at the sampling temperature
        "enforce_eager": on_cpu,  # on a CPU compiling does not pay off, and needs a compiler
        "gpu_memory_utilization": own.gpu_memory_utilization,
        "max_num_seqs": own.max_num_seqs,
        "worker_extension_cls": f"{WORKER}.WeightsFromFiles",
        "middleware": f"{WORKER}.RequireToken",
        "disable_uvicorn_access_log": True,
    }
    if on_cpu:
        arguments |= COMPLETE_PROMPTS
    if own.weight_transfer == "nccl":
        arguments["weight_transfer_config"] = {"backend": "nccl"}
    if own.max_model_len is not None:
        arguments["max_model_len"] = own.max_model_len
    flags = []
    for name, value in (arguments | dict(init_args)).items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            flags.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            text = json.dumps(value) if isinstance(value, (dict, list)) else str(value)
            flags.append(f"--{flag}={text}")
    return flags


def _init_args(text: str) -> dict[str, Any]:
    try:
        given = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(
            f'--model.engine.init_args: expected JSON, such as {{"dtype": "float32"}}: {error}'
        ) from error
    require(
        isinstance(given, dict), f"--model.engine.init_args: expected {{name: value}}, got {text}"
    )
    return dict(given)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _parser() -> OneLineArguments:
    parser = OneLineArguments(
        "vcppo serve",
        description="Run vLLM's server; a run with --model.engine.name=vllm_server samples there.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--model.actor", dest="actor", required=True, help="the run's; only its config is read"
    )
    parser.add_argument(
        "--host", default=LOOPBACK, help=f"address to listen on; default {LOOPBACK}, the loopback"
    )
    parser.add_argument("--port", type=int, default=8000, help="default 8000")
    parser.add_argument(
        "--token_file",
        help=f"file of the token, created if missing; default: ${VARIABLE}, or a file that the "
        "trainer also looks for",
    )
    parser.add_argument("--model.engine.max_num_seqs", dest="max_num_seqs", type=int, default=256)
    parser.add_argument("--model.engine.max_model_len", dest="max_model_len", type=int)
    parser.add_argument(
        "--model.engine.gpu_memory_utilization",
        dest="gpu_memory_utilization",
        type=float,
        default=0.9,
        help="default 0.9, because it does not share the devices",
    )
    parser.add_argument(
        "--model.engine.weight_transfer",
        dest="weight_transfer",
        choices=["files", "nccl"],
        default="files",
        help="the run's; default files",
    )
    parser.add_argument(
        "--model.engine.init_args",
        dest="init_args",
        default="{}",
        help='other arguments of vLLM as JSON, such as {"tensor_parallel_size": 2}',
    )
    return parser
