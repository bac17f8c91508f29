"""What a reward function's parameters name, and what they get."""

from __future__ import annotations

import asyncio
import functools
import math
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_vcppo.rewards.functions import Grader, load_reward
from lightning_vcppo.rewards.signatures import AT_ONCE, BUILT_IN, Reads, Signature

OTHERS = [
    {"problem": "2?", "finished": True, "response_ids": [5], "level": 3, "tests": ["a"]},
    {"problem": "4?", "finished": False, "response_ids": [6, 7], "level": None, "tests": []},
]


def grade(function, others=OTHERS):
    """Return the rewards of two responses."""
    grades = Grader(function).grade_all(["one", "two"], [2, (4, "four")], others=others)
    return [grade.reward for grade in grades]


def seen(function):
    """Return the arguments that a function gets, by call."""
    calls = []

    @functools.wraps(function)
    def record(**arguments):
        calls.append(arguments)
        return [0.0] * len(arguments["responses"]) if "responses" in arguments else 0.0

    grade(record)
    return calls


@pytest.mark.parametrize(
    "function",
    [
        lambda text, gold: (text, gold),
        lambda a, b, /: (a, b),
        lambda x, y, bonus=0, *, strict=True: (x, y),
    ],
    ids=["named", "by place", "with defaults"],
)
def test_two_values_with_other_names_are_response_and_answer(function):
    signature = Signature(function, "two")
    row = {"response": "7", "answer": 7, "problem": "3 + 4", "bonus": 5, "text": "a column"}
    assert signature.call([row]) == [("7", 7)]
    assert signature.reads.names == () and signature.reads.answer and not signature.is_batch


@pytest.mark.parametrize(
    ("function", "first", "second"),
    [
        (lambda response: 0, {"response": "one"}, {"response": "two"}),
        (
            lambda answer, response: 0,
            {"response": "one", "answer": 2},
            {"response": "two", "answer": 4},
        ),
        (
            lambda response, *, problem, finished, response_ids: 0,
            {"response": "one", "problem": "2?", "finished": True, "response_ids": [5]},
            {"response": "two", "problem": "4?", "finished": False, "response_ids": [6, 7]},
        ),
        (
            lambda response, level: 0,
            {"response": "one", "level": 3},
            {"response": "two", "level": None},
        ),
        (
            lambda response, level=1, rarity="high": 0,
            {"response": "one", "level": 3, "rarity": "high"},
            {"response": "two", "level": 1, "rarity": "high"},
        ),
        (
            lambda response, **columns: 0,
            {"response": "one", "level": 3, "tests": ["a"]},
            {"response": "two", "level": None, "tests": []},
        ),
        (
            lambda response, level=1, **columns: 0,
            {"response": "one", "level": 3, "tests": ["a"]},
            {"response": "two", "level": 1, "tests": []},
        ),
    ],
)
def test_a_function_gets_what_it_names(function, first, second):
    assert seen(function) == [first, second]


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (lambda responses: 0, {"responses": ["one", "two"]}),
        (
            lambda responses, answers, problems: 0,
            {"responses": ["one", "two"], "answers": [2, 4], "problems": ["2?", "4?"]},
        ),
        (
            lambda responses, finished, response_ids, level=7: 0,
            {
                "responses": ["one", "two"],
                "finished": [True, False],
                "response_ids": [[5], [6, 7]],
                "level": [3, 7],
            },
        ),
        (
            lambda responses, **columns: 0,
            {"responses": ["one", "two"], "level": [3, None], "tests": [["a"], []]},
        ),
    ],
)
def test_a_function_of_many_responses_gets_lists(function, arguments):
    assert seen(function) == [arguments]


def test_columns_with_names_of_lists_are_left_out():
    def many(responses, **columns):
        assert not columns
        return [float(len(responses))] * 2

    assert grade(many, [{"responses": ["a"], "answers": [1], "problem": "?"}] * 2) == [2, 2]


@given(
    st.lists(st.sampled_from([*BUILT_IN[1:], "level", "tests", "a", "b"]), unique=True),
    st.data(),
)
def test_any_signature_reads_its_columns_and_gets_its_values(names, data):
    optional = [name for name in names if data.draw(st.booleans())]
    parameters = ", ".join(f"{name}=None" if name in optional else name for name in names)
    namespace = {}
    exec(f"def f(response, *, {parameters or 'a'}): return 1.0", namespace)
    names = names or ["a"]
    columns = [name for name in names if name not in BUILT_IN]
    needed = tuple(name for name in columns if name not in optional)
    wanted = tuple(name for name in columns if name in optional)
    reads = Grader(namespace["f"]).reads
    assert reads == Reads("f", needed, wanted, False, "answer" in names)
    missing = [name for name in names if name not in (*optional, "answer", *OTHERS[0])]
    if missing:
        with pytest.raises(ValueError, match=f"^reward: f reads '{missing[0]}', which these resp"):
            grade(namespace["f"])
    else:
        assert grade(namespace["f"]) == [1.0, 1.0]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda text, gold, level: 0, "no parameter is named response or responses"),
        (lambda text: 0, "no parameter is named response or responses"),
        (lambda response, /: 0, "response cannot be passed by name"),
        (lambda *values: 0, "no parameter is named response or responses"),
        (lambda response, problems: 0, "gets single values, so problems is named problem; got"),
        (lambda responses, answer: 0, "it gets lists, so answer is named answers; got"),
        (lambda responses, response: 0, "it gets lists, so response is named responses; got"),
        (3, "not a callable object"),
    ],
)
def test_a_function_of_other_parameters_is_refused(function, message):
    with pytest.raises(ValueError, match=rf"^reward: not an f\(response, answer\): .*{message}"):
        load_reward(function)


class Lengths:
    """A function that is an object."""

    def __init__(self, factor=1):
        self.factor = factor

    def __call__(self, responses, level=None):
        return [self.factor * len(response) for response in responses]


class Waits(Lengths):
    """One that waits."""

    async def __call__(self, responses):
        await asyncio.sleep(0)
        return [len(response) for response in responses]


def test_a_class_is_made_into_a_function():
    assert grade(Lengths) == grade(Lengths()) == grade(Waits) == [3, 3]
    assert grade(f"{__name__}.Lengths") == [3, 3]
    assert grade(functools.partial(Lengths(), level=1)) == [3, 3]
    assert Grader(Lengths()).reads.function == "Lengths"
    with pytest.raises(ValueError, match=r"^reward: .*missing 1 required .*; got Needy$"):
        load_reward(type("Needy", (), {"__init__": lambda self, path: None}))


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ([1.0], r"^reward: expected 2 rewards from \S*, one for each response; got 1$"),
        ([1.0] * 3, r"^reward: expected 2 rewards from \S*, one for each response; got 3$"),
        (1.0, "got a float$"),
        (None, "got a NoneType$"),
        ([1.0, math.nan], r"^reward: expected finite numbers from \S*; got nan for response 1 of"),
        ([(math.inf, True), 1.0], "got inf for response 0 of 2$"),
        ([1.0, "high"], r"^reward: expected a number, or .* from \S*; got 'high'$"),
    ],
)
def test_a_function_of_many_responses_returns_a_reward_for_each(returned, message):
    def many(responses):
        return returned

    with pytest.raises(ValueError, match=message) as error:
        grade(many)
    assert "\n" not in str(error.value)


def test_a_function_of_many_responses_returns_numbers_pairs_and_arrays():
    import torch

    grades = Grader(lambda responses: [(0.5, False), True]).grade_all(["", ""], [1, 2])
    assert grades == [(0.5, False, False), (1.0, True, True)]
    assert grade(lambda responses: torch.tensor([0.5, -1.0])) == [0.5, -1.0]
    assert Grader(lambda responses: [1.0]).grade("", 1) == (1.0, True, True)


def test_no_responses_are_no_call():
    def never(responses):
        raise AssertionError

    assert Grader(never).grade_all([], []) == []


# Functions that wait


def test_calls_wait_together_and_no_more_than_allowed():
    running, most, threads = 0, 0, set()

    async def wait(response, answer):
        nonlocal running, most
        running += 1
        most = max(most, running)
        threads.add(threading.current_thread())
        await asyncio.sleep(0.001 * (answer % 3))
        running -= 1
        return answer

    count = 3 * AT_ONCE
    grades = Grader(wait).grade_all([""] * count, range(count))
    assert [grade.reward for grade in grades] == list(range(count))
    assert most == AT_ONCE and len(threads) == 1


def test_a_loop_may_run_already_as_in_a_notebook():
    async def one(response):
        return 1.0

    async def cell():
        return grade(one)

    assert asyncio.run(cell()) == [1.0, 1.0]


def test_the_first_error_ends_all_calls():
    ended = []

    async def fail(response, answer):
        if answer == 0:
            raise TimeoutError("the judge is asleep")
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(answer)

    start = time.monotonic()
    with pytest.raises(TimeoutError, match="the judge is asleep"):
        Grader(fail).grade_all([""] * 9, range(9))
    while len(ended) < 8 and time.monotonic() - start < 10:
        time.sleep(0.01)
    assert sorted(ended) == list(range(1, 9))


# Messages about columns


def test_a_missing_column_is_named_with_those_that_exist():
    reads = Reads("f", ("level", "tests"), ("rarity",))
    reads.check(["Level", "tests"], "a.jsonl")
    with pytest.raises(ValueError) as error:
        reads.check(["problem", "answer", "levels", "tests"], "a.jsonl")
    assert str(error.value) == (
        "reward: f reads 'level', which is no column of a.jsonl (it has problem, answer, levels, "
        "tests); did you mean levels?; with a default the parameter may be missing"
    )
    with pytest.raises(ValueError, match=r"no column of generated problems \(it has none\); with"):
        reads.check([], "generated problems")


def test_what_stored_responses_lack_is_named():
    message = r"^reward: \S* reads 'level', which these responses do not have; besides response and"
    with pytest.raises(ValueError, match=rf"{message} answer they have problem$"):
        grade(lambda response, level: 0, [{"problem": "?"}, {"problem": "?"}])
    with pytest.raises(ValueError, match=rf"{message} answer they have no more$"):
        grade(lambda responses, level: 0, [{}, {}])
