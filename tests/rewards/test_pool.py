"""Worker processes: verdicts in order, whatever their number; limits, crashes and the end."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest

from lightning_vcppo.rewards import pool as pool_module
from lightning_vcppo.rewards.functions import Grader
from lightning_vcppo.rewards.pool import Comparison, GradingPool
from lightning_vcppo.settings import GradingSettings
from tests.support.rows import every

PAIRS = [
    (r"\sqrt{8}", r"2\sqrt{2}", True),
    ("(x+1)^2", "x^2+2x+1", True),
    ("(x+1)^2", "x^2+2x+2", False),
    (r"\sin^2 x + \cos^2 x", "1", True),
    ("y = 2x", "2x - y = 0", True),
    (r"\frac{1}{x}", "x^{-1}", True),
    ("x + y", "x - y", False),
] * 4  # fmt: skip
COMPARISONS = [Comparison(ours, (gold,), "math") for ours, gold, _ in PAIRS]
VERDICTS = [equal for *_, equal in PAIRS]


@pytest.mark.parametrize("workers", every(2, [0, 1, 3]))
def test_verdicts_and_their_order_do_not_depend_on_the_number_of_workers(workers: int) -> None:
    pool = GradingPool(GradingSettings(workers=workers))
    assert pool.compare(COMPARISONS) == VERDICTS
    assert pool.compare(COMPARISONS[:3]) == VERDICTS[:3]
    assert pool.compare([]) == []
    assert pool.limit_hits == 0
    pool.close()


def test_a_worker_that_dies_is_started_again() -> None:
    pool = GradingPool(GradingSettings(workers=2))
    assert pool.compare(COMPARISONS) == VERDICTS
    for worker in pool.workers():
        os.kill(worker.process.pid, signal.SIGKILL)
    assert pool.compare(COMPARISONS) == VERDICTS
    assert pool.limit_hits == 0
    pool.close()


SLOW = """
import sys
from lightning_vcppo.rewards import worker
compare = worker.answers_equal
def slow(candidate, accepted, kind=None):
    if candidate == "spin":
        sum(range(10**12))
    if candidate == "fill":
        bytearray(2**34)
    if candidate == "die":
        sys.exit(3)
    return compare(candidate, accepted, kind)
worker.answers_equal = slow
worker.main(float(sys.argv[1]), int(sys.argv[2]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory are Linux's")
@pytest.mark.parametrize(
    ("candidate", "limit"),
    every(3, [("spin", "CPU seconds"), ("fill", "memory"), ("die", "exit code 3")]),
)
def test_what_reaches_a_limit_is_wrong_counted_and_named(
    candidate: str, limit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    popen = subprocess.Popen

    def slow_worker(arguments: list[str], **options):
        return popen([arguments[0], "-c", SLOW, *arguments[3:]], **options)

    monkeypatch.setattr(pool_module.subprocess, "Popen", slow_worker)
    pool = GradingPool(GradingSettings(workers=1, limit_s=1.0))
    asked = [*COMPARISONS[:3], Comparison(candidate, ("1",), "math"), *COMPARISONS[3:7]]
    with pytest.warns(UserWarning, match=rf"^grading: comparing '{candidate}' .*\({limit}\)"):
        verdicts = pool.compare(asked)
    assert verdicts == [*VERDICTS[:3], False, *VERDICTS[3:7]]
    assert pool.limit_hits == 1
    pool.close()


def test_workers_that_cannot_start_end_the_run_in_one_line(monkeypatch) -> None:
    popen = subprocess.Popen
    monkeypatch.setattr(
        pool_module.subprocess,
        "Popen",
        lambda arguments, **options: popen(
            [sys.executable, "-c", "raise SystemExit(5)"], **options
        ),
    )
    with pytest.raises(RuntimeError, match=r"^grading: 3 workers ended with exit code 5 ") as error:
        GradingPool(GradingSettings(workers=1)).compare(COMPARISONS)
    assert "\n" not in str(error.value)


def test_a_line_says_how_far_grading_is(monkeypatch, caplog, capfd) -> None:
    monkeypatch.setattr(pool_module, "PROGRESS_S", 0.0)
    lines: list[str] = []
    monkeypatch.setattr(pool_module, "rank_zero_info", lines.append)
    pool = GradingPool(GradingSettings(workers=1))
    pool.compare(COMPARISONS)
    pool.close()
    assert re.fullmatch(r"Grading: \d+ of 7 answers compared in \d+ s", lines[0])


@pytest.mark.thorough
def test_workers_end_with_the_run_that_started_them() -> None:
    program = (
        "import os, signal\n"
        "from lightning_vcppo.rewards.pool import Comparison, GradingPool\n"
        "from lightning_vcppo.settings import GradingSettings\n"
        "pool = GradingPool(GradingSettings(workers=1))\n"
        "pool.compare([Comparison('(x+1)^2', ('x^2+2x+1',), 'math')])\n"
        "print(pool.workers()[0].process.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    ended = subprocess.run(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, env=environment, timeout=120
    )
    worker = int(ended.stdout)
    until = time.monotonic() + 30
    while time.monotonic() < until and _runs(worker):
        time.sleep(0.1)
    assert not _runs(worker)


def _runs(process: int) -> bool:
    try:
        with open(f"/proc/{process}/stat") as status:
            return status.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_worker_does_without_torch() -> None:
    program = "import sys, lightning_vcppo.rewards.worker; print('torch' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    told = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True
    )
    assert told.stdout == "False\n"


# A batch of responses


def test_a_batch_gets_the_grades_of_its_responses_one_by_one() -> None:
    responses = [rf"\boxed{{{ours}}}" for ours, *_ in PAIRS[:7]] + ["none", r"\boxed{7}"]
    golds = [gold for _, gold, _ in PAIRS[:7]] + ["1", 7]
    grader = Grader("boxed", GradingSettings(workers=1))
    grades = grader.grade_all(responses, golds)
    assert [grade.correct for grade in grades] == [*VERDICTS[:7], False, True]
    assert grades == [grader.grade(*pair) for pair in zip(responses, golds, strict=True)]
    assert grader.seconds > 0
    grader.pool.close()


def test_answers_that_texts_decide_need_no_worker() -> None:
    grader = Grader("boxed")
    responses = [rf"\boxed{{{n}}}" for n in range(100)]
    grades = grader.grade_all(responses, list(range(100)))
    assert all(grade.correct for grade in grades)
    assert grader.pool._workers == []


def test_a_function_of_ones_own_is_called_in_this_process() -> None:
    called = []
    grader = Grader(lambda response, answer: called.append((os.getpid(), answer)) or 1.0)
    grader.grade_all(["a", "b"], [3, ("x", "y")])
    assert called == [(os.getpid(), 3), (os.getpid(), "x")]


def test_the_kind_of_each_answer_counts() -> None:
    grader = Grader("boxed", GradingSettings(workers=0))
    response = r"\boxed{2/4}"
    grades = grader.grade_all([response] * 3, ["1/2"] * 3, ["math", "text", None])
    assert [grade.correct for grade in grades] == [True, False, True]


@pytest.mark.parametrize(("name", "value"), [("workers", -1), ("limit_s", 0.5), ("memory_mb", 100)])
def test_impossible_settings_are_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"^{name}: expected >= .*, got {value}"):
        GradingSettings(**{name: value})
