"""Tiny runs of one to four processes: `-m tests.support.rank_run ACTOR DIRECTORY` does all `RUNS`.

With `-` behind these it does those that standard input names, and answers each with a line.

Python and its libraries start once; each process is a fork that finds its rank in the environment,
as under torchrun. What a process has at the end is in `DIRECTORY/NAME/RANK.pt`.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.strategies import StrategyRegistry
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from lightning_vcppo import AIMEDataModule
from lightning_vcppo.callbacks import (
    AIMEEvaluation,
    CriticCalibration,
    GuardRails,
    RewardDecayMonitor,
    ValuePretraining,
)
from lightning_vcppo.distributed.fsdp2 import FSDP2Strategy
from lightning_vcppo.settings import OptimizerSettings, SamplingSettings, UpdateSettings
from tests.support.forks import FORK, run_ranks
from tests.support.tiny_runs import ROLLOUTS, TINY, vcppo
from tests.support.training import (
    EVERYTHING,
    SUCCESSORS,
    Recorder,
    SaveAfter,
    make_module,
    weights,
)

WELL = "well"
StrategyRegistry.register("hsdp", FSDP2Strategy, shards=2)
FEW = ["--data.prompts_per_rollout=6", "--trainer.limit_train_batches=2"]
BATCHES = 7
PAPER_RATES = {
    "actor_optimizer": OptimizerSettings(lr=1e-6),
    "critic_optimizer": OptimizerSettings(lr=2e-6),
}
"""For float32: at the tests' high rates Adam makes much of gradients that are all rounding."""
SAVED_AFTER = {"pretraining": 1, "waiting": 4}
"""Checkpoints: in value pretraining, and while groups wait for a rollout to fill up."""


@dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
        strategy: Of the Trainer.
        ranks: Processes.
        precision: Of the Trainer.
        nodes: Machines that the processes believe to be on.
        resume: Name of a run and of its checkpoint.
        switches: Name of the set of switches it trains with.
        counted: Count the numbers that DDP sums over ranks.
    """

    strategy: str = "auto"
    ranks: int = 1
    precision: str = "64-true"
    nodes: int = 1
    resume: tuple[str, str] | None = None
    switches: str = "everything"
    counted: bool = False


RUNS = {
    "one": Run(),
    "ddp_2": Run("ddp", 2),
    "ddp_4": Run("ddp", 4, nodes=2),
    "fsdp2_2": Run("fsdp2", 2),
    "fsdp2_4": Run("fsdp2", 4, nodes=2),
    "hsdp_4": Run("hsdp", 4),
    "offload_2": Run("fsdp2_offload", 2),
    "one_32": Run(precision="32-true"),
    "ddp_2_32": Run("ddp", 2, "32-true"),
    "ddp_4_32": Run("ddp", 4, "32-true"),
    "fsdp2_2_32": Run("fsdp2", 2, "32-true"),
    "fsdp2_4_32": Run("fsdp2", 4, "32-true"),
    "fsdp2_2_bf16": Run("fsdp2", 2, "bf16-true"),
    "fsdp2_2_mixed": Run("fsdp2", 2, "bf16-mixed"),
    "ddp_2_pretraining": Run("ddp", 2, resume=("ddp_2", "pretraining")),
    "ddp_2_waiting": Run("ddp", 2, resume=("ddp_2", "waiting"), counted=True),
    "fsdp2_2_pretraining": Run("fsdp2", 2, resume=("fsdp2_2", "pretraining")),
    "fsdp2_2_waiting": Run("fsdp2", 2, resume=("fsdp2_2", "waiting")),
    "ddp_2_to_1": Run(resume=("ddp_2", "pretraining")),
    "fsdp2_2_to_1": Run("fsdp2", 1, resume=("fsdp2_2", "pretraining")),
    "fsdp2_2_to_4": Run("fsdp2", 4, resume=("fsdp2_2", "pretraining")),
    "ddp_2_to_offload_2": Run("fsdp2_offload", 2, resume=("ddp_2", "waiting")),
    "successors_one": Run(switches="successors"),
    "successors_ddp_2": Run("ddp", 2, switches="successors"),
    "successors_fsdp2_2": Run("fsdp2", 2, switches="successors"),
    "side_one": Run(switches="side"),
    "side_ddp_2": Run("ddp", 2, switches="side"),
}
SWITCHES = {
    "everything": ("critic_first", EVERYTHING),
    "successors": ("actor_first", SUCCESSORS),
    "side": (
        "together",
        EVERYTHING
        | {"value": replace(EVERYTHING["value"], architecture="side", side_taps=2, side_width=16)},
    ),
}
"""Order of the networks and switches, by name."""

_ACTOR = ["--model.actor={actor}"]
COMMANDS = {
    "cold_start": ["fit", "--model=ColdStartModule", *_ACTOR, *TINY, *FEW],
    "reward_model": [
        *("fit", "--model=RewardModelModule", *_ACTOR, *TINY, *FEW),
        *("--model.sampling.max_response_length=8", "--model.unfinished_score=-1"),
        "--model.reward=tests.support.tiny_runs.parity",
    ],
    "predict": [
        *("predict", *_ACTOR, *ROLLOUTS, "--data.train_size=25"),
        "--response_writer.path={directory}/rollouts.jsonl",
    ],
    "saved": [
        *("fit", *_ACTOR, *ROLLOUTS, "--value_pretraining.max_rollouts=2"),
        "--value_pretraining.rollouts_path={directory}/rollouts.jsonl",
        *("--critic_calibration.audit_every=1", "--critic_calibration.audit_prefixes=4"),
        "--critic_calibration.audit_continuations=2",
    ],
    "validate": ["validate", *_ACTOR, *ROLLOUTS, "--ckpt_path={checkpoint}"],
}
"""What else `vcppo` does, with sharded weights."""
_UNEQUAL = [
    *("fit", "--config=vcppo", *_ACTOR, *ROLLOUTS, "--data.train_size=32"),
    "--data.prompts_per_rollout=10",
    *("--model.update.ppo_mini_batch_size=4", "--model.update.ppo_max_token_len_per_gpu=1"),
]
COMMANDS["reader"] = [
    *("fit", *_ACTOR, *ROLLOUTS, "--model.sampling.num_generations=2"),
    *("--model.value.freeze=attention", "--model.value.privileged_prompt=siblings"),
    *("--model.value.head=sigmoid", "--model.value.loss=bce"),
    "--model.value.privileged_max_length=64",
]
COMMANDS |= {
    f"preset_{strategy}": [*_UNEQUAL, f"--trainer.strategy={strategy}"]
    for strategy in ("ddp", "fsdp2")
}
"""The default preset, in which no loss is on that others need; ranks have other numbers of rows and
micro-batches."""


class Traffic(Callback):
    """Count the numbers that DDP sums over ranks, by network."""

    def on_train_start(self, trainer, pl_module):
        self.exchanged = {}
        self.before = dict(pl_module.updates_done)
        for name, wrapper in trainer.strategy.wrappers.items():
            self.exchanged[name] = 0
            wrapper.register_comm_hook(name, self.exchange)

    def exchange(self, name, bucket):
        """Do what DDP does without a hook."""
        self.exchanged[name] += bucket.buffer().numel()
        return allreduce_hook(None, bucket)

    def on_train_end(self, trainer, pl_module):
        networks = {"actor": "policy", "critic": "critic"}
        self.expected = {
            name: sum(p.numel() for p in getattr(pl_module, name).parameters())
            * (pl_module.updates_done[network] - self.before[network])
            for name, network in networks.items()
        }


def device_of_shards(model: PreTrainedModel) -> torch.device:
    """Return where weights are if the host is another device: what is built there fails."""
    return torch.device("meta" if isinstance(next(model.parameters()), DTensor) else "cpu")


def train(actor: str, directory: Path, name: str) -> None:
    """Do one run, as one of its processes."""
    run = RUNS[name]
    if run.strategy == "fsdp2_offload":
        PreTrainedModel.device = property(device_of_shards)
    order, switches = SWITCHES[run.switches]
    seed_everything(0)
    # Micro-batches of about three rows: the ranks have different numbers of them.
    module = make_module(
        actor,
        sampling=SamplingSettings(max_response_length=8, num_generations=2, dynamic_sampling=True),
        update=UpdateSettings(
            order=order,
            ppo_mini_batch_size=6,
            ppo_max_token_len_per_gpu=130,
        ),
        **switches,
        **(PAPER_RATES if run.precision == "32-true" else {}),
    )
    saving = (
        []
        if run.resume
        else [
            SaveAfter(batches, directory / name / f"{when}.ckpt")
            for when, batches in SAVED_AFTER.items()
        ]
    )
    recorder = Recorder()
    trainer = Trainer(
        accelerator="cpu",
        strategy=run.strategy,
        devices=run.ranks // run.nodes,
        num_nodes=run.nodes,
        precision=run.precision,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        max_epochs=1,
        limit_train_batches=BATCHES,
        num_sanity_val_steps=1,
        default_root_dir=directory / name,
        callbacks=[
            ValuePretraining(max_rollouts=2, replays=1, held_out_share=0.5),
            RewardDecayMonitor(),
            CriticCalibration(),
            GuardRails(),
            AIMEEvaluation(),
            recorder,
            *saving,
            *([traffic := Traffic()] if run.counted else []),
        ],
    )
    data = AIMEDataModule(train_size=60, val_size=3, val_batch_size=1, prompts_per_rollout=8)
    resumed = None if run.resume is None else directory / run.resume[0] / f"{run.resume[1]}.ckpt"
    trainer.fit(module, data, ckpt_path=resumed)
    module.export(directory / name)
    result = {
        "actor": weights(module.actor),
        "critic": weights(module.critic),
        "rollouts": module.rollouts_done,
        "responses": [list(r.responses) for r in recorder.rollouts if r is not None],
        "metrics": {k: float(v) for k, v in trainer.callback_metrics.items()},
    }
    if run.counted:
        result["exchanged"] = [traffic.exchanged, traffic.expected]
    torch.save(result, directory / name / f"{trainer.global_rank}.pt")


def command(actor: str, directory: Path, name: str) -> None:
    """Run `vcppo`, as one of two processes, with sharded weights unless the words say else."""
    checkpoint = next((directory / "saved" / "checkpoints").glob("*.ckpt"), None)
    texts = {"actor": actor, "directory": directory, "checkpoint": checkpoint}
    words = [word.format(**texts) for word in COMMANDS[name]]
    words[1:1] = ["--trainer.strategy=fsdp2", "--trainer.devices=2", "--loggers=[csv]"]
    vcppo(*words, f"--trainer.default_root_dir={directory / name}")


def launch(actor: str, directory: Path, name: str) -> bool:
    """Do one run in processes of its own; tell whether all have ended well, and in time."""
    run = RUNS.get(name, Run("fsdp2", 2))
    work = train if name in RUNS else command
    logs, nodes = directory / name, run.nodes
    arguments = (actor, directory, name)
    return run_ranks(work, *arguments, ranks=run.ranks, logs=logs, nodes=nodes, context=FORK)


def main(actor: str, directory: str, *names: str) -> None:
    """Do the named runs, or all, and say which went wrong."""
    torch.set_num_threads(1)
    if names == ("-",):
        for line in sys.stdin:
            print(WELL if launch(actor, Path(directory), line.strip()) else "failed", flush=True)
        return
    failed = [name for name in names or RUNS if not launch(actor, Path(directory), name)]
    if failed:
        raise SystemExit(f"failed or hung: {', '.join(failed)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
