r"""Send hostile responses to the verifier, and check for crashes, hangs and wrong rewards.

    python -m benchmarks.stress.fuzz --inputs 100000 --seed 0
    python -m benchmarks.stress.fuzz --inputs 25000 --start 50000    # its third quarter

Input i of a seed is always the same text, so a range can be repeated alone. Each input is read in
all four styles and graded against several integers, most of them from the text itself. The
verifier must return soon and without an error, and it must

1. reward a response for at most one integer, even if it is a list or an expression;
2. leave a canonical answer unchanged, and call it equal to itself;
3. reward nothing after a thinking tag that is opened and not closed.

The inputs run in a child process with a limit of CPU time for each and of memory for all; an input
that exceeds it, also in C code, is a hang. The last line is JSON: inputs, crashes, hangs,
violations of the three rules, seconds of the slowest, and peak memory.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import random
import re
import resource
import signal
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import get_args

from lightning_vcppo.rewards import verifier
from lightning_vcppo.rewards.verifier import Style

HANGS_AFTER = 5.0
"""Limit of CPU time for one input, in seconds."""
MEMORY = 2**30
"""Limit of memory for all inputs together, in bytes above that of the libraries."""

DIGITS = ("\uff10", "\u0660", "\u06f0", "\u0966", "\U0001d7ce", "\U0001d7e2", "\u2080", "\u2460")
"""Zeros of other scripts, and look-alikes; nine more follow each."""
COMMANDS = (
    *(r"\frac", r"\dfrac", r"\sqrt", r"\binom", r"\sum_{n=1}^", r"\prod_{k=1}^", r"\int_0^"),
    *(r"\lim_{x\to 0}", r"\text", r"\mathrm", r"\mathbb", r"\overline", r"\lfloor", r"\left"),
    *(r"\right", r"\pm", r"\cdot", r"\times", r"\div", r"\pi", r"\infty", r"\circ", r"\degree"),
    *(r"\begin{cases}", r"\end{cases}", r"\begin{pmatrix}", r"\cup", r"\in", r"\leq", r"\neq"),
    *(r"\sin", r"\log", r"\exp", r"\gcd", r"\pmod", r"\ldots", r"\\", r"\{", r"\}", r"\,", r"\;"),
)
MARKS = (
    *(
        "answer: ",
        "Answer:",
        "**Answer:** ",
        "the answer is ",
        "####",
        "final answer ",
        "or",
        "and",
    ),
    *("<think>", "</think>", "<|channel|>analysis<|message|>", "<|channel|>final<|message|>"),
    *("<|im_end|>", "<|endoftext|>", "<eos>", "[THINK]", "[/THINK]", "\n\n", "\r\n", "\t", "\0"),
    *("\u202e", "\u200b", "\u2212", "\u00a0", "\ufeff", "\x1b[2J", "\ud800", "=cmd|' /C calc'!A1"),
    *("__import__('os')", "lambda: 0", "x.__class__", "${7*7}", "{{7*7}}", "%n%s", "</script>"),
)


def invent(seed: int, index: int) -> str:
    """Return the input with that number."""
    rng = random.Random(f"{seed}/{index}")
    parts = [_part(rng) for _ in range(rng.choice((1, 1, 1, 2, 3, 6)))]
    return str(rng.choice(("", "", " ", "\n"))).join(parts)


def _part(rng: random.Random) -> str:
    kind = rng.random()
    if kind < 0.55:
        return _boxed(rng, _expression(rng, rng.randrange(5)))
    if kind < 0.75:
        return rng.choice(MARKS) + _expression(rng, rng.randrange(3))
    if kind < 0.85:
        return "".join(rng.choice((*COMMANDS, *MARKS, *"{}()[]^_$.,=-+*/!|")) for _ in range(30))
    if kind < 0.92:
        return "".join(
            chr(rng.choice((rng.randrange(128), rng.randrange(0xD800)))) for _ in range(40)
        )
    if kind < 0.995:
        return _number(rng)
    piece = rng.choice((*COMMANDS, *MARKS, *"{}()[]^$9 ", r"\boxed{", r"\boxed 5 ", "{,}", "1,234"))
    return str(piece) * rng.choice((100, 1_000, 20_000))


def _boxed(rng: random.Random, text: str) -> str:
    return rng.choice(
        (
            *(rf"\boxed{{{text}}}",) * 6,
            rf"\boxed{{\boxed{{{text}}}}}",
            rf"\fbox{{{text}}}",
            rf"\boxed{{{text}",
            rf"\boxed {text}",
            rf"\\boxed{{{text}}}",
            rf"\boxed{{{text}}}}}",
            rf"\boxed{{\text{{{text}}}}}",
            rf"$\boxed{{{text}}}$<|im_end|>",
        )
    )


def _expression(rng: random.Random, depth: int) -> str:
    if depth == 0:
        return _number(rng)
    a, b = _expression(rng, depth - 1), _expression(rng, rng.randrange(depth))
    return rng.choice(
        (
            *(f"{a}+{b}", f"{a}-{b}", f"{a}/{b}", rf"{a}\cdot {b}", f"({a})({b})", f"{a}{{{b}}}"),
            *(rf"\frac{{{a}}}{{{b}}}", rf"\frac{a}{b}", rf"\sqrt{{{a}}}", rf"\sqrt[{b}]{{{a}}}"),
            *(f"{a}^{{{b}}}", f"({a})^{b}", f"{a}^{a}^{b}", f"{a}**{b}", f"{a}!", f"-({a})"),
            *(f"{a}, {b}", f"{a} or {b}", rf"{a} \text{{ or }} {b}", f"{a};{b}", f"{a}={b}"),
            *(rf"\{{{a}, {b}\}}", f"[{a}, {b}]", f"({a}, {b})", f"{a}|{b}", f"{a}..{b}", f"x={a}"),
            *(
                rf"{a}\pm {b}",
                rf"{a}\text{{ {b}}}",
                rf"\binom{{{a}}}{{{b}}}",
                f"{a}{b}",
                f"{a} {b}",
            ),
            *(f"{a}^\\circ", rf"\left({a}\right)", rf"{rng.choice(COMMANDS)}{{{a}}}{{{b}}}"),
            *(f"{rng.choice('xyabci')}{a}", f"{a}<x<{b}", f"{a}%", rf"\${a}", f"|{a}|"),
        )
    )


def _number(rng: random.Random) -> str:
    plain = str(rng.randrange(rng.choice((10, 10, 20, 1000, 10**9))))
    kind = rng.random()
    if kind < 0.7:
        return plain
    if kind < 0.8:
        zero = rng.choice(DIGITS)
        return "".join(chr(ord(zero) + int(digit)) for digit in plain)
    return rng.choice(
        (
            *(f"-{plain}", f"{plain}.0", f"{plain}.{plain}", f"0{plain}", f"{plain}.", f".{plain}"),
            *(f"{plain},{plain:0>3}", f"{plain}e{plain}", f"0x{plain}", f"{plain}_{plain}"),
            *("9" * rng.choice((20, 99, 301, 5_000)), f"1{'0' * 40}", "9^{9^{9}}", "1/0", "0/0"),
            *(r"\infty", "nan", "None", "", "x", r"\emptyset", " ".join(map(str, range(300)))),
        )
    )


def broken_rule(text: str, rng: random.Random) -> str | None:
    """Return the rule that the verifier breaks on a text, or None."""
    integers = sorted({int(n) for n in re.findall("[0-9]{1,3}", text, re.ASCII)[:200]})
    golds = {*rng.sample(integers, min(3, len(integers))), rng.randrange(20), rng.randrange(20)}
    verdicts: dict[tuple[str, int], bool] = {}
    for style in get_args(Style):
        candidate = verifier.extract_answer(text, style=style)
        for gold in golds:
            reward = verifier.verify(text, gold, style=style)
            if candidate is None:
                if reward != -1.0:
                    return f"{style}: no answer, reward {reward}"
                continue
            if (candidate, gold) not in verdicts:
                verdicts[candidate, gold] = verifier.answers_equal(candidate, gold)
            if reward != (1.0 if verdicts[candidate, gold] else -1.0):
                return f"{style}: reward {reward} against {gold}"
        if candidate is None:
            continue
        if len(right := [gold for gold in golds if verdicts[candidate, gold]]) > 1:
            return f"{style}: all of {right}"
        normal = verifier.normalize_answer(candidate)
        if verifier.normalize_answer(normal) != normal:
            return f"{style}: not canonical: {normal!r}"
        if verifier.answers_equal(candidate, candidate) != bool(normal):
            return f"{style}: not equal to itself: {normal!r}"
        if verifier.extract_answer(f"{text}<think>{text[:100]}", style=style) is not None:
            reopened = verifier.answer_part(f"<think>{text[:100]}")
            if not reopened:
                return f"{style}: an answer within thinking"
    return None


@dataclass
class Findings:
    """Results of a range of inputs."""

    inputs: int = 0
    crashes: int = 0
    hangs: int = 0
    violations: int = 0
    slowest_s: float = 0.0
    slowest: int = -1
    messages: list[str] = field(default_factory=list)


def examine(
    seed: int, indices: range, before_each: Callable[[int], None] = lambda index: None
) -> Findings:
    """Try inputs in this process.

    Args:
        seed: Seed of the inputs.
        indices: Numbers of the inputs.
        before_each: Called with each number before it is tried.
    """
    found = Findings()
    for index in indices:
        before_each(index)
        text = invent(seed, index)
        start = time.process_time()
        try:
            broken = broken_rule(text, random.Random(index))
        except Exception as error:  # any error is a finding
            found.crashes += 1
            found.messages.append(f"{index}: {type(error).__name__}: {error}: {text[:200]!r}")
        else:
            if broken:
                found.violations += 1
                found.messages.append(f"{index}: {broken}: {text[:200]!r}")
        seconds = time.process_time() - start
        if seconds > found.slowest_s:
            found.slowest_s, found.slowest = seconds, index
        found.inputs += 1
    return found


def guarded(seed: int, start: int, inputs: int) -> Findings:
    """Try inputs in child processes; an input that ends its process is a hang or a crash."""
    whole = Findings()
    shared = mmap.mmap(-1, 8)
    while inputs > whole.inputs:
        indices = range(start + whole.inputs, start + inputs)
        with tempfile.TemporaryFile("w+") as file:
            child = os.fork()
            if child == 0:
                _child(seed, indices, shared, file.fileno())
            _, status = os.waitpid(child, 0)
            file.seek(0)
            written = file.read()
        if status == 0:
            part = Findings(**json.loads(written))
        else:  # repeat the inputs before the last one, whose findings are lost
            (last,) = struct.unpack("q", shared[:])
            part = examine(seed, range(indices.start, last))
            end = os.waitstatus_to_exitcode(status)
            hang = end == -signal.SIGVTALRM
            part.hangs, part.crashes = part.hangs + hang, part.crashes + (not hang)
            part.inputs += 1
            part.messages.append(f"{last}: ended its process ({end}): {invent(seed, last)[:200]!r}")
        whole = _sum(whole, part)
    return whole


def _child(seed: int, indices: range, shared: mmap.mmap, output: int) -> None:
    """Try inputs under limits, and end the process."""
    with open("/proc/self/statm") as file:
        size = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))

    def before_each(index: int) -> None:
        shared[:] = struct.pack("q", index)
        signal.setitimer(signal.ITIMER_VIRTUAL, HANGS_AFTER)  # unhandled, it ends the process

    found = examine(seed, indices, before_each)
    os.write(output, json.dumps(vars(found)).encode())
    os._exit(0)


def _sum(a: Findings, b: Findings) -> Findings:
    slower = max(a, b, key=lambda found: found.slowest_s)
    return Findings(
        a.inputs + b.inputs,
        a.crashes + b.crashes,
        a.hangs + b.hangs,
        a.violations + b.violations,
        slower.slowest_s,
        slower.slowest,
        a.messages + b.messages,
    )


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.stress.fuzz",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--start", type=int, default=0, help="number of the first input")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    examine(arguments.seed, range(20))  # imports and caches
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = guarded(arguments.seed, arguments.start, arguments.inputs)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    for message in found.messages:
        print(message.encode("utf-8", "backslashreplace").decode(), file=sys.stderr)
    summary = {
        "inputs": found.inputs,
        "start": arguments.start,
        "seed": arguments.seed,
        "crashes": found.crashes,
        "hangs": found.hangs,
        "violations": found.violations,
        "slowest_s": round(found.slowest_s, 3),
        "slowest_input": found.slowest,
        "peak_mb": peak // 1024,
        "libraries_mb": before // 1024,
    }
    print(json.dumps(summary))
    sys.exit(found.crashes + found.hangs + found.violations > 0)


if __name__ == "__main__":
    main()
