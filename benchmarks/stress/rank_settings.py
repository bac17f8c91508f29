"""Generate random runs of several ranks from a seed, for `benchmarks.stress.ranks`."""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lightning_vcppo.cli.configs import shipped_directory

DUAL_CLIP = ("ppo", "dppo_tv")
LOSSES = (*DUAL_CLIP, "dis", "cispo", "gspo")
PRESETS = sorted(path.stem for path in shipped_directory("configs").glob("*.yaml"))
STRATEGIES = ("ddp", "fsdp2", "hsdp")
REWARDS = ("parity", "parity", "parity", "always", "never")
PLACEMENTS = ("loss", "reward")
LONGEST = 10
"""Largest number of tokens of a response."""


@dataclass(frozen=True)
class Stage:
    """One command of a run.

    Attributes:
        words: Arguments of `vcppo`, without directory, strategy and devices.
        strategy: Strategy of the Trainer.
        ranks: Number of processes.
    """

    words: tuple[str, ...]
    strategy: str
    ranks: int


def parity(response: str, answer: int) -> float:
    """Reward about half of all random responses."""
    return 1.0 if hashlib.md5(response.encode()).digest()[0] % 2 else -1.0


def always(response: str, answer: int) -> float:
    """Reward every response, so that no group has an advantage, and no return varies."""
    return 1.0


def never(response: str, answer: int) -> float:
    """Reward no response."""
    return -1.0


def invent(seed: int, actor: Path, sets: Path, most_ranks: int = 4) -> list[Stage]:
    """Return the commands of a run: one, or two of which the second resumes or evaluates it.

    Strategies and presets take turns, so that a few consecutive seeds cover all of them.

    Args:
        seed: Number of the run.
        actor: Directory of a tiny actor.
        sets: Directory of problem files for evaluations.
        most_ranks: Largest number of processes, 2 or 4; hsdp has 4.
    """
    rng = random.Random(f"ranks/{seed}")
    strategies = STRATEGIES if most_ranks == 4 else STRATEGIES[:2]
    strategy = strategies[seed % len(strategies)]
    ranks = most_ranks if strategy == "hsdp" or seed // 3 % 3 == 2 else 2
    kind = rng.choices(("vcppo", "cold_start", "reward_model"), (18, 1, 1))[0]
    other = min(rng.choice((ranks, ranks, 6 - ranks)), most_ranks)  # ranks of a resumed run
    words = [f"--model.actor={actor}", *_data(rng, {ranks, other}, sets), *_trainer(rng)]
    if kind != "vcppo":
        name = {"cold_start": "ColdStartModule", "reward_model": "RewardModelModule"}[kind]
        words = [f"--model={name}", *words]
        if kind == "reward_model":
            words += [f"--model.sampling.max_response_length={LONGEST}", *_reward(rng)]
            words += rng.choice(([], ["--model.unfinished_score=-1"]))
    else:
        preset = PRESETS[seed % len(PRESETS)]
        words = [f"--config={preset}", *words, *_algorithm(rng, preset), *_reward(rng)]
        words += _value_pretraining(rng)
    stages = [Stage(("fit", *words), strategy, ranks)]
    after = rng.random()
    if after < 0.2:
        more = ("--ckpt_path=last", "--trainer.max_epochs=2", "--trainer.limit_train_batches=3")
        stages.append(Stage(("fit", *words, *more), strategy, other))
    elif after < 0.3 and kind == "vcppo":
        command = rng.choice(("validate", "test", "predict"))
        stages.append(Stage((command, *words), strategy, ranks))
    return stages


def _data(rng: random.Random, ranks: set[int], sets: Path) -> list[str]:
    """Return prompts that divide among the ranks, and evaluation sets that may not."""
    named = ", ".join(f"{path.stem}: {path}" for path in sorted(sets.glob("*.jsonl")))
    return [
        "--data.path=null",
        f"--data.train_size={rng.randint(40, 48)}",
        f"--data.val_size={rng.choice((0, 1, 2, 3, 5))}",
        f"--data.val_batch_size={rng.randint(1, 3)}",
        f"--data.prompts_per_rollout={rng.choice((4, 8) if 4 in ranks else (2, 4, 6))}",
        "--data.evaluation_sets=" + rng.choice(("null", f"{{{named}}}")),
        f"--model.evaluation={{max_response_length: {LONGEST}}}",
    ]


def _trainer(rng: random.Random) -> list[str]:
    batches = rng.choice((1, 2, 2, 3))
    return [
        *("--trainer.accelerator=cpu", "--trainer.enable_model_summary=false"),
        *("--loggers=[csv]", "--trainer.max_epochs=1", "--trainer.check_val_every_n_epoch=1"),
        "--trainer.num_nodes=1",
        f"--trainer.limit_train_batches={batches}",
        f"--trainer.val_check_interval={rng.randint(1, batches)}",
        f"--trainer.limit_val_batches={rng.choice((0, 1, 1.0))}",
        f"--trainer.precision={rng.choice(('32-true', '32-true', 'bf16-mixed', 'bf16-true'))}",
        f"--rollout_checkpoint.every_n_rollouts={rng.randint(1, 2)}",
        f"--progress_bar.line_every_s={rng.choice((0, 30))}",
        f"--guard_rails.on_violation={rng.choice(('off', 'warn', 'stop'))}",
    ]


def _reward(rng: random.Random) -> list[str]:
    return [f"--model.reward={__name__}.{rng.choice(REWARDS)}"]


def _algorithm(rng: random.Random, preset: str) -> list[str]:
    """Return tiny sizes for a preset, and random options that presets leave off."""
    given = yaml.safe_load((shipped_directory("configs") / f"{preset}.yaml").read_text())
    model: dict[str, Any] = given["model"]["init_args"]
    is_group = model.get("advantage", {}).get("estimator", "gae") != "gae"
    needs_groups = is_group or model.get("value", {}).get("prompt_noise_weighting")
    needs_groups = needs_groups or model["sampling"].get("dynamic_sampling")
    needs_groups = needs_groups or model.get("value", {}).get("privileged_prompt") == "siblings"
    has_dual_clip = model.get("policy", {}).get("clip_ratio_c") is not None
    clips_values = model.get("value", {}).get("cliprange_value") is not None
    adapts = model.get("advantage", {}).get("length_adaptive_alpha")
    n = rng.choice((2, 3) if needs_groups else (1, 2, 3))
    words = [
        *("--model.engine.name=transformers", "--model.engine.init_args={}"),
        "--model.critic=null",
        "--model.value.privileged_max_length=256",
        f"--model.sampling.num_generations={n}",
        f"--model.sampling.max_response_length={LONGEST}",
        "--model.reward_shaping.overlong_buffer_len=" + rng.choice(("0", "4")),
        f"--model.update.ppo_mini_batch_size={rng.choice((1, 3, 5, 8, 64))}",
        f"--model.update.ppo_max_token_len_per_gpu={rng.choice((1, 60, 100, 150, 4000))}",
        f"--model.update.ppo_epochs={rng.choice((1, 1, 2))}",
        f"--model.actor_optimizer.lr={rng.choice((1e-3, 1e-6))}",
        *(["--model.advantage.length_adaptive_alpha=0.5"] if adapts else []),
    ]
    options = [
        ["--model.sampling.dynamic_sampling=true"] if n > 1 else [],
        ["--model.policy.kl_coef=0.1", f"--model.policy.kl_placement={rng.choice(PLACEMENTS)}"],
        ["--model.policy.positive_example_nll_weight=0.1"],
        [
            f"--model.policy.importance_correction={rng.choice(('truncate', 'mask'))}",
            "--model.policy.old_logprobs=auto",
        ],
        [f"--model.policy.loss={rng.choice(DUAL_CLIP if has_dual_clip else LOSSES)}"],
        ["--model.policy.mask_truncated=true"],
        ["--model.policy.entropy_coeff=0.01"],
        ["--model.policy.old_logprobs=recomputed"],
        ["--model.activation_checkpointing=true"],
        ["--model.lora.rank=2"],
    ]
    if not is_group:
        options += [
            ["--model.advantage.bootstrap_truncated=true"],
            ["--model.advantage.explained_variance_gate=true"],
            [
                "--model.value.head=scalar",
                "--model.value.loss=mse",
                "--model.value.cliprange_value=0.2",
            ],
            ["--model.value.head=hl_gauss", "--model.value.loss=mse"] if not clips_values else [],
            ["--model.update.order=actor_first", "--model.value.target_correction=importance"],
            ["--model.update.critic_mini_batch_size=2", "--model.update.critic_epochs=2"],
            [
                *("--critic_calibration.audit_every=1", "--critic_calibration.audit_prefixes=5"),
                "--critic_calibration.audit_continuations=2",
            ],
        ]
    for option in options:
        words += option if rng.random() < 0.3 else []
    return words


def _value_pretraining(rng: random.Random) -> list[str]:
    rollouts = rng.choice((0, 1, 2))
    return [
        f"--value_pretraining.enabled={'true' if rollouts else 'false'}",
        f"--value_pretraining.max_rollouts={rollouts}",
        f"--value_pretraining.min_rollouts={rng.randint(0, rollouts)}",
        "--value_pretraining.patience=1",
        f"--value_pretraining.replays={rng.choice((0, 1))}",
        f"--value_pretraining.held_out_share={rng.choice((0.1, 0.5, 0.9))}",
    ]
