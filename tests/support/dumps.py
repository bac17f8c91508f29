"""Rows as other trainers dump them, all of the same four responses to two prompts."""

from __future__ import annotations

from typing import Any

QUESTIONS = ["1 + 2 = ?", "5 + 5 = ?"]
REPLIES = [r"\boxed{3}", r"\boxed{4}", r"\boxed{10}", r"\boxed{10}"]
REWARDS = [1.0, -1.0, 1.0, 1.0]
ANSWERS = ["3", "10"]


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def _assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def verl(n: int) -> dict[str, Any]:
    return {
        "input": QUESTIONS[n // 2],
        "output": REPLIES[n],
        "gts": ANSWERS[n // 2],
        "score": REWARDS[n],
        "step": 7,
        "acc": REWARDS[n] > 0,
    }


def trl(n: int) -> dict[str, Any]:
    return {
        "step": "3",  # TRL writes it as text
        "prompt": QUESTIONS[n // 2],
        "completion": REPLIES[n],
        "accuracy_reward": REWARDS[n] - 0.5,
        "format_reward": 0.5,
        "advantage": 0.1,
    }


def nemo_rl(n: int) -> dict[str, Any]:
    prompt, reply = list(QUESTIONS[n // 2].encode()), list(REPLIES[n].encode())
    length = len(prompt) + len(reply)
    return {
        "content": [[QUESTIONS[n // 2], REPLIES[n]]],
        "rewards": [REWARDS[n]],
        "input_lengths": [length],
        "token_ids": [[*prompt, *reply, 0, 0]],
        "token_loss_mask": [[0] * len(prompt) + [1] * len(reply) + [0, 0]],
        "sample_loss_mask": [1.0],
        "idx": n,
    }


def nemo_rl_validation(n: int) -> dict[str, Any]:
    chat = [_user(QUESTIONS[n // 2]), _assistant(REPLIES[n])]
    return {"content": [chat], "rewards": [REWARDS[n]], "idx": n}


def openrlhf(n: int) -> dict[str, Any]:
    return {"input": QUESTIONS[n // 2], "output": REPLIES[n], "reward": REWARDS[n]}


def skyrl(n: int) -> dict[str, Any]:
    return {
        "input_prompt": QUESTIONS[n // 2],
        "output_response": REPLIES[n],
        "score": [0.0, REWARDS[n]],
        "stop_reason": "length" if n == 1 else "stop",
        "env_class": "math",
        "env_extras": {"reward_spec": {"ground_truth": ANSWERS[n // 2]}},
        "data_source": "sums",
    }


def verifiers(n: int) -> dict[str, Any]:
    return {
        "example_id": n // 2,
        "prompt": [_user(QUESTIONS[n // 2])],
        "completion": [_assistant(REPLIES[n])],
        "answer": ANSWERS[n // 2],
        "reward": REWARDS[n],
        "is_truncated": n == 1,
        "is_completed": True,
        "metrics": {"reward": REWARDS[n]},
    }


def prime_rl(n: int) -> dict[str, Any]:
    prompt, reply = list(QUESTIONS[n // 2].encode()), list(REPLIES[n].encode())
    nodes = [
        {"message": _user(QUESTIONS[n // 2]), "token_ids": prompt, "mask": [False] * len(prompt)},
        {
            "parent": 0,
            "sampled": True,
            "message": _assistant(REPLIES[n]),
            "token_ids": [10, *reply],
            "mask": [False] + [True] * len(reply),
        },
    ]
    trace = {
        "nodes": nodes,
        "rewards": {"math": {"score": REWARDS[n] / 2, "weight": 2.0}},
        "calls": [{"node": 1, "finish_reason": "length" if n == 1 else "stop"}],
        "task": {"type": "Sum", "key": f"sum-{n // 2}", "data": {"answer": ANSWERS[n // 2]}},
    }
    return {"id": str(n), "env": {"name": "sums"}, "ok": True, "traces": [trace]}


def batch_request(n: int) -> dict[str, Any]:
    body = {"model": "m", "messages": [_user(QUESTIONS[n // 2])]}
    return {"custom_id": f"r{n}", "method": "POST", "url": "/v1/chat/completions", "body": body}


def batch_output(n: int) -> dict[str, Any]:
    reason = "length" if n == 1 else "stop"
    choice = {"index": 0, "message": _assistant(REPLIES[n]), "finish_reason": reason}
    response = {"status_code": 200, "body": {"choices": [choice]}}
    return {"id": f"b{n}", "custom_id": f"r{n}", "response": response, "error": None}


def ours(n: int) -> dict[str, Any]:
    """Return a row of this package's own files, without token ids."""
    row = {"index": n, "sample": 0, "source": f"a:{n}", "problem": QUESTIONS[n], "response": "r"}
    row |= {"answer": int(ANSWERS[n]), "prediction": None, "correct": True, "length": 1}
    return row | {"finished": True}


def plain(n: int) -> dict[str, Any]:
    return {"prompt": QUESTIONS[n // 2], "response": REPLIES[n], "reward": REWARDS[n]}


def chat(n: int) -> dict[str, Any]:
    turns = [_user(QUESTIONS[n // 2]), _assistant(REPLIES[n])]
    return {"messages": turns, "score": REWARDS[n]}


DUMPS = {
    "verl": verl,
    "TRL": trl,
    "NeMo-RL": nemo_rl,
    "NeMo-RL, validation": nemo_rl_validation,
    "OpenRLHF": openrlhf,
    "SkyRL": skyrl,
    "verifiers": verifiers,
    "prime-rl": prime_rl,
    "plain rows": plain,
    "chats": chat,
}
