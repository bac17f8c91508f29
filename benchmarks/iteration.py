"""Time complete rollouts, against TRL and by length: `python -m benchmarks.iteration`.

One rollout is 64 prompts sampled, graded and scored, and one epoch of one mini-batch of actor and
critic: `VCPPOModule` under a Lightning Trainer against TRL with the same model, prompts and limits,
in turn, on two threads of the CPU. On W every response has 256 tokens; on W-tail lengths have a
long tail. Both start from the same weights, and both stop at the end of a response. TRL needs the
extra `bench`.

TRL always reads a reference policy, and VC-PPO has none by default: "with a reference" adds one for
comparison. The last line is JSON:

    speedup_vs_trl, tail_speedup_vs_trl       seconds of TRL / ours, on W and on W-tail
    speedup_vs_trl_with_reference, tail_...   the same with a reference on both sides
    generate_s, score_s, update_s, tail_...   our seconds

`--growth` instead measures a rollout of W with 8 prompts at response lengths of 256, 512, ...,
4,096 tokens, each in its own process: seconds, and the peak of memory above libraries and
models. It draws docs/images/growth.png. Memory grows with the tokens of a micro-batch, which are
in memory at once, up to `ppo_max_token_len_per_gpu`.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import Any

from lightning.pytorch import Callback, Trainer
from matplotlib.figure import Figure
from torch.utils.data import DataLoader

from benchmarks.measure import (
    THREADS,
    EndlessModule,
    Workload,
    alternating_seconds,
    forget_peak,
    in_own_process,
    peak_bytes,
    print_json,
    print_table,
    quiet_trainer,
    speedup,
    start,
    word_tokenizer,
    workload,
)
from lightning_vcppo import VCPPOModule
from lightning_vcppo.data.problem import Problem
from lightning_vcppo.data.prompts import PromptBatch
from lightning_vcppo.settings import PolicySettings, SamplingSettings, UpdateSettings

PARTS = ("generate", "score", "update")
MICRO_BATCH_TOKENS = 4096  # 1,024 to 16,384 measure alike on a CPU
LENGTHS = (256, 512, 1024, 2048, 4096)
GROWTH_PROMPTS, GROWTH_IMAGE = 8, Path("docs/images/growth.png")


def parity(response: str, answer: int) -> float:
    """Reward about half of all responses, at no cost."""
    return 1.0 if len(response) % 2 else -1.0


@dataclass
class Measured(Callback):
    """Measurements of rollouts.

    Attributes:
        seconds: Seconds of each rollout, from the batch to the logged metrics.
        parts: Seconds of its parts.
        tokens: Response tokens.
    """

    seconds: list[float] = field(default_factory=list)
    parts: list[dict[str, float]] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        """Start the clock."""
        self._began = perf_counter()

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        """Stop the clock and store the measurements."""
        self.seconds.append(perf_counter() - self._began)
        metrics = trainer.callback_metrics
        self.parts.append({part: float(metrics[f"time/{part}_s"]) for part in PARTS})
        self.tokens.append(int(pl_module.rollout.response_lengths_B.sum()))


def our_iteration(
    work: Workload, directory: Path, *, reference: bool = False
) -> tuple[Callable[[], float], Measured]:
    """Return a function that does one rollout and returns its seconds, and its measurements.

    Args:
        work: The workload.
        directory: Directory to which the actor is written.
        reference: Whether there is a reference policy.
    """
    work.model().save_pretrained(directory)
    last = work.config.vocab_size - 1
    ends = work.eos_token_id <= last
    tokenizer = word_tokenizer(replace(work, eos_token_id=min(work.eos_token_id, last)))
    tokenizer.save_pretrained(directory)
    module = (VCPPOModule if ends else EndlessModule)(
        str(directory),
        reward="benchmarks.iteration.parity",
        sampling=SamplingSettings(max_response_length=work.max_response_length),
        policy=PolicySettings(kl_coef=1e-3 if reference else 0.0),
        update=UpdateSettings(
            ppo_mini_batch_size=len(work.prompts), ppo_max_token_len_per_gpu=MICRO_BATCH_TOKENS
        ),
    )
    problems = [Problem(problem="", answer=0) for _ in work.prompts]
    batch = PromptBatch(problems, work.prompts, list(range(len(problems))))
    measured = Measured()

    def iterate() -> float:
        trainer = quiet_trainer(callbacks=[measured])
        trainer.fit(module, DataLoader([batch], batch_size=None))  # type: ignore[arg-type]
        return measured.seconds[-1]

    return iterate, measured


def compare(name: str, repeats: int, directory: Path) -> dict[str, float]:
    """Time TRL and ours in turn on a workload, print a table and return the figures."""
    from benchmarks.trl_ppo import TRLIteration

    work = workload(name)
    trl = TRLIteration(work, str(directory / "trl"))
    ours, measured = our_iteration(work, directory / "ours")
    ours_with_reference, measured_with = our_iteration(work, directory / "both", reference=True)
    times = alternating_seconds(
        {
            "TRL": trl,
            "ours": ours,
            "ours with a reference": ours_with_reference,
        },
        repeats,
    )
    tokens = {
        "TRL": trl.tokens,
        "ours": measured.tokens,
        "ours with a reference": measured_with.tokens,
    }
    rows = [
        [
            way,
            statistics.median(taken),
            min(taken),
            max(taken),
            speedup(times, "TRL", way),
            statistics.mean(tokens[way]) / len(work.prompts),
        ]
        for way, taken in times.items()
    ]
    header = ["", "seconds", "min", "max", "speed-up", "tokens a response"]
    print_table(f"{name}, one rollout, {THREADS} threads, medians of {repeats}", header, rows)
    parts = {p: statistics.median(m[p] for m in measured.parts[-repeats:]) for p in PARTS}
    trl_generate_s = statistics.median(trl.generate_seconds[-repeats:])
    trl_rest_s = statistics.median(times["TRL"]) - trl_generate_s
    split = [["ours", *parts.values()], ["TRL", trl_generate_s, "with update", trl_rest_s]]
    print_table("of that, seconds", ["", *PARTS], split)
    prefix = "tail_" if name == "W-tail" else ""
    return {
        f"{prefix}speedup_vs_trl": speedup(times, "TRL", "ours"),
        f"{prefix}speedup_vs_trl_with_reference": speedup(times, "TRL", "ours with a reference"),
        **{f"{prefix}{part}_s": seconds for part, seconds in parts.items()},
    }


def growth_point(length: int, directory: Path) -> dict[str, float]:
    """Measure one rollout with responses of `length` tokens in this process."""
    warm_up, _ = our_iteration(
        workload("W", GROWTH_PROMPTS, max_response_length=8), directory / "8"
    )
    warm_up()
    iterate, measured = our_iteration(
        workload("W", GROWTH_PROMPTS, max_response_length=length), directory / "actor"
    )
    forget_peak()
    before = peak_bytes()
    seconds = iterate()
    return {
        "length": length,
        "tokens": measured.tokens[-1],
        "seconds": seconds,
        "bytes": peak_bytes() - before,
        **measured.parts[-1],
    }


def growth() -> dict[str, float]:
    """Measure every length in its own process, print a table, draw a figure, return the slope."""
    points = [in_own_process("benchmarks.iteration", "--point", length) for length in LENGTHS]
    rows = [
        [
            str(p["length"]),
            p["seconds"],
            *(p[part] for part in PARTS),
            p["bytes"] / 1e6,
            p["bytes"] / 1e3 / p["tokens"],
        ]
        for p in points
    ]
    header = ["length", "seconds", *PARTS, "extra MB", "kB a token"]
    print_table(f"one rollout of {GROWTH_PROMPTS} responses, {THREADS} threads", header, rows)
    draw(points)
    first, *_, last = points
    return {
        "kb_per_token": (last["bytes"] - first["bytes"]) / 1e3 / (last["tokens"] - first["tokens"]),
        "longest_s": last["seconds"],
    }


def draw(points: list[dict[str, float]]) -> None:
    """Draw seconds and memory over the length."""
    figure = Figure(figsize=(6.4, 3.0), layout="constrained")
    lengths = [p["length"] for p in points]
    for place, (label, values) in enumerate(
        {
            "seconds of a rollout": [p["seconds"] for p in points],
            "extra peak memory in MB": [p["bytes"] / 1e6 for p in points],
        }.items()
    ):
        axes = figure.add_subplot(1, 2, place + 1)
        axes.plot(lengths, values, marker="o")
        axes.set(xlabel="tokens a response", ylabel=label, xlim=(0, None), ylim=(0, None))
        axes.grid(alpha=0.3)
    figure.savefig(GROWTH_IMAGE, dpi=120)


def main() -> None:
    """Read the flags, measure, print tables and a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workload", choices=["W", "W-tail"], nargs="+", default=["W", "W-tail"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--growth", action="store_true", help="time and memory by response length")
    parser.add_argument("--point", type=int, help="one length of --growth, in this process")
    flags = parser.parse_args()
    start()
    with tempfile.TemporaryDirectory() as temporary:
        if flags.point:
            results = growth_point(flags.point, Path(temporary))
        elif flags.growth:
            results = growth()
        else:
            results = {}
            for name in flags.workload:
                results |= compare(name, flags.repeats, Path(temporary, name))
    print_json(results)


if __name__ == "__main__":
    main()
