"""Extract the responses from a row of a trainer's dump.

The fields of a row identify its schema. The schemas follow the source code of the trainers, in the
versions that `docs/howto/other_trainers.md` lists. A schema takes token ids if the dump has them;
otherwise it takes texts, which `importing.py` tokenizes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias, cast, get_args

from lightning_vcppo.data.cell_types import shown, truth
from lightning_vcppo.data.chats import parsed
from lightning_vcppo.data.texts import InvalidRow
from lightning_vcppo.interchange import cells
from lightning_vcppo.interchange.cells import Prompt
from lightning_vcppo.rewards.answers import AnswerKind

Row: TypeAlias = Mapping[str, Any]

TRL = "TRL"
NO_REWARDS = {"step", "advantage", "advantages", "length", "index", "idx"}
"""Numeric columns of a table of completions that are not rewards."""


@dataclass(frozen=True, slots=True)
class ForeignResponse:
    """A response of another trainer, with the data that its dump has about it.

    Attributes:
        prompt: Text, or messages of a chat.
        response: Text; empty if the dump has only token ids.
        reward: Reward; None if the dump has none.
        prompt_ids: Token ids of the prompt, if the dump has them.
        response_ids: Token ids of the response, if the dump has them.
        finished: False for a truncated response; None if unknown.
        answer: The right answer, if the dump has it.
        group: Name of the prompt, if the dump has one; otherwise equal prompts are one group.
        step: Training step of the dump.
        values: Values of the trainer's own critic, one for each response token.
        origin: Policy and sampling settings, which the files of this package have.
        answer_kind: Kind of comparison of the answer, which they also have.
        columns: Columns that a reward function reads, which they also have.
    """

    prompt: Prompt
    response: str
    reward: float | None = None
    prompt_ids: list[int] | None = None
    response_ids: list[int] | None = None
    finished: bool | None = None
    answer: Any = None
    group: str | None = None
    step: int | None = None
    values: list[float] | None = None
    origin: Mapping[str, Any] | None = None
    answer_kind: AnswerKind | None = None
    columns: Mapping[str, Any] | None = None


class Fields(NamedTuple):
    """Names of fields that the user gives; fields that are None are detected."""

    prompt: str | None = None
    response: str | None = None
    reward: str | None = None


class Schema(NamedTuple):
    """A kind of row.

    Attributes:
        trainer: Trainer that writes such rows.
        needs: Fields that the row must have.
        read: Function that yields the responses of a row.
    """

    trainer: str
    needs: frozenset[str]
    read: Callable[[Row, Fields], Iterator[ForeignResponse]]


def schema_of(row: Row, fields: Fields = Fields()) -> Schema:
    """Return the first schema whose fields a row has, or that of plain rows if fields are given."""
    schemas = SCHEMAS[-1:] if fields.prompt or fields.response else SCHEMAS
    for schema in schemas:
        if schema.needs <= row.keys():
            return schema
    return SCHEMAS[-1]


# Ours ---------------------------------------------------------------------------------------------


def _ours(row: Row, fields: Fields) -> Iterator[ForeignResponse]:
    reward = row.get("reward")
    if reward is None:
        reward = 1.0 if row["correct"] else -1.0
    yield ForeignResponse(
        prompt=row.get("prompt") or row["problem"],
        response=row["response"],
        reward=cells.number(reward, "reward"),
        prompt_ids=row.get("prompt_ids"),
        response_ids=row.get("response_ids"),
        origin=row.get("origin"),
        finished=row.get("finished"),
        answer=[row["answer"], *row["accepted"]] if row.get("accepted") else row.get("answer"),
        group=f"{row.get('evaluation_set', '')}/{row['index']}" if "index" in row else None,
        answer_kind=_answer_kind(row.get("answer_kind")),
        columns=row.get("columns"),
    )


def _answer_kind(value: Any) -> AnswerKind | None:
    if value not in (None, *get_args(AnswerKind)):
        raise InvalidRow(f"answer_kind: expected one of {get_args(AnswerKind)}, got {shown(value)}")
    return cast("AnswerKind | None", value)


# Tables of texts ----------------------------------------------------------------------------------


def _verl(row: Row, fields: Fields) -> Iterator[ForeignResponse]:
    yield ForeignResponse(
        prompt=cells.text(row["input"], "input"),
        response=cells.text(row["output"], "output"),
        reward=_chosen_reward(row, fields, "score"),
        answer=row.get("gts", row.get("ground_truth")),
        group=cells.as_name(row.get("uid")),
        step=cells.step(row.get("step")),
        values=row.get("values"),
    )


def _trl(row: Row, fields: Fields) -> Iterator[ForeignResponse]:
    if fields.reward:
        reward = _chosen_reward(row, fields, "")
    elif not (names := summed_rewards(row)):
        reward = None
    else:  # each has weight 1, the trainer's default
        reward = sum(cells.number(row[name], name) for name in names)
    yield ForeignResponse(
        prompt=cells.prompt(row["prompt"], "prompt"),
        response=cells.reply(row["completion"], "completion"),
        reward=reward,
        answer=row.get("answer", row.get("solution")),
        step=cells.step(row.get("step")),
    )


def summed_rewards(row: Row) -> list[str]:
    """Return the columns of TRL whose sum is the reward: one for each reward function."""
    return [
        name
        for name, value in row.items()
        if name not in NO_REWARDS
        and isinstance(value, (int, float))
        and not isinstance(value, bool)
    ]


def _skyrl(row: Row, fields: Fields) -> Iterator[ForeignResponse]:
    extras = row.get("env_extras") or {}
    truth = extras.get("reward_spec") or extras.get("reward_model") or {}
    yield ForeignResponse(
        prompt=cells.text(row["input_prompt"], "input_prompt"),
        response=cells.text(row["output_response"], "output_response"),
        reward=_chosen_reward(row, fields, "score"),
        finished=cells.ended(row.get("stop_reason")),
        answer=truth.get("ground_truth") if isinstance(truth, dict) else None,
    )


def _verifiers(row: Row, fields: Fields) -> Iterator[ForeignResponse]:
    yield ForeignResponse(
        prompt=cells.prompt(row["prompt"], "prompt"),
        response=cells.reply(row["completion"], "completion"),
        reward=_chosen_reward(row, fields, "reward"),
        finished=_not(row.get("is_truncated"), "is_truncated"),
        answer=row.get("answer"),
        group=cells.as_name(row.get("example_id")),
    )


# Token ids ----------------------------------------------------------------------------------------


def _nemo_rl(row: Row, fields: Fields) -> Iterator[ForeignResponse]:
    """Read a row of NeMo-RL, whose columns are batches of one."""
    content = cells.only(row["content"])
    reward = cells.number(
        cells.only(row.get(fields.reward or "rewards")), fields.reward or "rewards"
    )
    if "token_ids" not in row:  # dumps of a validation have only the messages
        turns = cells.messages(content, "content")
        yield ForeignResponse(turns[:-1], turns[-1]["content"], reward)
        return
    length = int(cells.only(row["input_lengths"]))
    ids, mask = cells.only(row["token_ids"])[:length], cells.only(row["token_loss_mask"])[:length]
    first = next((place for place, is_ours in enumerate(mask) if is_ours), length)
    last = max((place for place, is_ours in enumerate(mask) if is_ours), default=-1)
    if last < 0:
        raise InvalidRow("token_loss_mask is 0 everywhere: there is no response")
    if not all(mask[first : last + 1]):
        raise InvalidRow("the response has several turns; one is expected")
    texts = content if isinstance(content, list) else [content]
    yield ForeignResponse(
        prompt="".join(str(part) for part in texts[:-1]),
        response=str(texts[-1]),
        reward=reward,
        prompt_ids=ids[:first],
        response_ids=ids[first : last + 1],
        finished=_not(cells.only(row.get("truncated")), "truncated"),
    )


def _episodes(row: Row, fields: Fields) -> Iterator[ForeignResponse]:
    """Read an episode of verifiers' version 1, as prime-rl dumps it: a trace is a graph."""
    for trace in row["traces"]:
        nodes = trace["nodes"]
        sampled = [place for place, node in enumerate(nodes) if node.get("sampled")]
        if len(sampled) != 1:
            raise InvalidRow(f"the trace has {len(sampled)} sampled turns; one is expected")
        path: list[Any] = []
        place = sampled[0]
        while place is not None:
            if len(path) == len(nodes):
                raise InvalidRow("nodes: expected a tree, but a node is its own ancestor")
            path.append(nodes[place])
            place = nodes[place].get("parent")
        *context, answer = reversed(path)
        ids = [token for node in context for token in node.get("token_ids") or ()]
        own_ids, mask = answer.get("token_ids") or [], answer.get("mask") or []
        scaffold = next((n for n, is_sampled in enumerate(mask) if is_sampled), len(mask))
        rewards = [r for r in (trace.get("rewards") or {}).values() if r is not None]
        task = trace.get("task") or row.get("task") or {}
        stop = next((c.get("finish_reason") for c in reversed(trace.get("calls") or [])), None)
        yield ForeignResponse(
            prompt=cells.messages([node["message"] for node in context], "nodes"),
            response=cells.content(answer["message"]),
            reward=sum(r["score"] * r.get("weight", 1.0) for r in rewards) if rewards else None,
            prompt_ids=[*ids, *own_ids[:scaffold]] if own_ids else None,
            response_ids=own_ids[scaffold:] if own_ids else None,
            finished=cells.ended(stop or trace.get("stop_condition")),
            answer=(task.get("data") or {}).get("answer"),
            group=cells.as_name(task.get("key") or task.get("hash")),
        )


def _batch_output(row: Row, fields: Fields) -> Iterator[ForeignResponse]:
    """Read a line of a batch of the OpenAI API; the prompt is in the input file of the batch."""
    answer = row["response"] or {}
    body = answer.get("body") or {}
    if row.get("error") or not body.get("choices"):
        raise InvalidRow(f"the request failed: {row.get('error') or 'it has no choices'}")
    for choice in body["choices"]:
        message = choice.get("message")
        yield ForeignResponse(
            prompt="",
            response=cells.content(message) if message else choice.get("text", ""),
            finished=cells.ended(choice.get("finish_reason")),
            response_ids=choice.get("token_ids"),
            prompt_ids=choice.get("prompt_token_ids") or body.get("prompt_token_ids"),
            group=str(row["custom_id"]),
        )


# Any other row ------------------------------------------------------------------------------------

PROMPT_FIELDS = ("prompt", "prompts", "messages", "input", "question", "problem", "query")
RESPONSE_FIELDS = (
    *("response", "responses", "completion", "completions", "output", "outputs"),
    *("generation", "generations", "generated_text", "answer_text"),
)
REWARD_FIELDS = ("reward", "rewards", "score", "scores", "correct", "is_correct", "label")
ANSWER_FIELDS = ("answer", "gold", "ground_truth", "gts", "solution")


def _plain(row: Row, fields: Fields) -> Iterator[ForeignResponse]:
    """Read a row with a prompt, one or several responses, and as many rewards."""
    ids_P, ids_R = row.get("prompt_ids"), row.get("response_ids")
    prompt_name = _field(row, fields.prompt, PROMPT_FIELDS)
    response_name = _field(row, fields.response, RESPONSE_FIELDS)
    if prompt_name is None and ids_P is None:
        raise _missing(row, "prompt", PROMPT_FIELDS)
    asked: Prompt = "" if prompt_name is None else cells.prompt(row[prompt_name], prompt_name)
    if response_name is None and ids_R is None:
        if not isinstance(asked, list) or asked[-1]["role"] != "assistant":
            raise _missing(row, "response", RESPONSE_FIELDS)
        asked, given = asked[:-1], [asked[-1]["content"]]  # a complete chat in one field
    elif response_name is None:
        given = [""] * (len(ids_R or ()) if _is_nested(ids_R) else 1)
    else:
        value = parsed(row[response_name])
        if not isinstance(value, list) or (value and isinstance(value[0], dict)):
            value = [value]
        given = [cells.reply(item, response_name) for item in value]
    reward_name = _field(row, fields.reward, REWARD_FIELDS)
    values = row[reward_name] if reward_name is not None else None
    rewards = values if isinstance(values, list) else [values]
    if len(rewards) != len(given):
        raise InvalidRow(f"{len(given)} responses and {len(rewards)} rewards")
    answer_name = _field(row, None, ANSWER_FIELDS)
    count = len(given)
    ids = _dealt(ids_R, count, "response_ids")
    critics = _dealt(row.get("values"), count, "values")
    ends = _ends(row, count)
    for response, reward, own_ids, finished, own_values in zip(
        given, rewards, ids, ends, critics, strict=True
    ):
        yield ForeignResponse(
            prompt=asked,
            response=response,
            reward=None if reward is None else cells.number(reward, str(reward_name)),
            prompt_ids=ids_P,
            response_ids=own_ids,
            finished=finished,
            answer=row[answer_name] if answer_name else None,
            step=cells.step(row.get("step")),
            values=own_values,
        )


def _is_nested(value: Any) -> bool:
    return bool(isinstance(value, list) and value and all(isinstance(v, list) for v in value))


def _dealt(value: Any, count: int, name: str) -> list[Any]:
    """Return the list of each response, given the list of one or the lists of all."""
    if value is None:
        return [None] * count
    if _is_nested(value) and len(value) == count:
        return list(value)
    if count == 1:
        return [value]
    raise InvalidRow(f"{name}: expected {count} lists, one for each response")


def _ends(row: Row, count: int) -> list[Any]:
    """Return whether each response is finished, given one value for all or one for each."""
    name = "finish_reason" if row.get("finished") is None else "finished"
    value = row.get(name)
    each = value if isinstance(value, list) else [value] * count
    if len(each) != count:
        raise InvalidRow(f"{name}: expected {count}, one for each response, got {len(each)}")
    return each if name == "finished" else [cells.ended(reason) for reason in each]


def _needs(*fields: str) -> frozenset[str]:
    return frozenset(fields)


SCHEMAS = (
    Schema("lightning-vcppo", _needs("index", "sample", "problem", "response", "correct"), _ours),
    Schema("NeMo-RL", _needs("content", "rewards", "idx"), _nemo_rl),
    Schema("prime-rl", _needs("traces"), _episodes),
    Schema("vLLM or OpenAI batch", _needs("custom_id", "response"), _batch_output),
    Schema("SkyRL", _needs("input_prompt", "output_response", "score"), _skyrl),
    Schema("verifiers", _needs("prompt", "completion", "reward", "example_id"), _verifiers),
    Schema(TRL, _needs("prompt", "completion", "advantage"), _trl),
    Schema("verl", _needs("input", "output", "score"), _verl),
    Schema("plain rows", _needs(), _plain),
)
"""All schemas, from the most specific to the most general."""


def _not(cut: object, name: str) -> bool | None:
    """Return whether a response is finished, given whether it is truncated."""
    return None if cut is None else not truth(cut, name)


def _chosen_reward(row: Row, fields: Fields, usual: str) -> float | None:
    name = fields.reward or usual
    if name not in row:
        raise InvalidRow(f"no field {name!r} with a reward")
    return None if row[name] is None else cells.number(row[name], name)


def _field(row: Row, named: str | None, usual: tuple[str, ...]) -> str | None:
    if named:
        if named not in row:
            raise InvalidRow(f"no field {named!r}; fields: {', '.join(map(str, row))}")
        return named
    return next((name for name in usual if row.get(name) is not None), None)


def _missing(row: Row, what: str, usual: tuple[str, ...]) -> InvalidRow:
    return InvalidRow(
        f"no {what}: expected one of {', '.join(usual)}; fields: {', '.join(map(str, row))} "
        f"(--{what}_field names one)"
    )
