"""Every reward function that docs/howto/reward.md shows can be used."""

from __future__ import annotations

import importlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from lightning_vcppo.rewards.functions import Grader, load_reward
from tests.support.data import CHAT
from tests.support.pages import titled
from tests.support.tiny_runs import ROOT


@pytest.fixture(autouse=True)
def _files_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write the files that the page shows, to be imported."""
    for name, text in titled(ROOT / "docs" / "howto" / "reward.md", "python"):
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)


def test_the_rewards_of_the_page_can_be_used() -> None:
    reward = load_reward("my_reward.brief")
    assert reward(r"\boxed{7}", 7) == 1.1
    assert reward(r"\boxed{7}", 8) == -1.0
    partial = load_reward("my_partial_reward.partial")
    responses = (r"\boxed{7}", r"\boxed{8}", "7")
    assert [partial(text, 7) for text in responses] == [(1.0, True), (0.2, False), (0.0, False)]
    by_level = Grader("my_levels.by_level")
    rows = [{"finished": True, "difficulty": 3}, {"finished": True}, {"finished": False}]
    grades = by_level.grade_all([r"\boxed{7}"] * 3, [7] * 3, others=rows)
    assert [grade.reward for grade in grades] == [3.0, 1.0, 0.0]
    total = Grader("my_sum.total").grade(r"\boxed{7}", 7)
    assert total == (pytest.approx(1.2 - 9e-5), True, False)
    program = "So:\n```python\ndef f(x):\n    return x + 1\n```"
    tests = [{"tests": f"assert f(1) == {right}"} for right in (2, 3)]
    grades = Grader("my_tests.passes").grade_all([program] * 2, ["", ""], others=tests)
    assert [grade.reward for grade in grades] == [1.0, 0.0]


def test_the_reward_model_of_the_page_scores(tiny_actor: Path) -> None:
    grader = Grader("my_judge.quality")
    judge = importlib.import_module("my_judge")
    judge.NAME = str(tiny_actor)
    judge.tokenizer().chat_template = CHAT
    others = [{"problem": "3 + 4?"}, {"problem": "3 + 5?"}]
    grades = grader.grade_all([r"\boxed{7}", r"\boxed{7}"], [7, 8], others=others)
    assert [grade.correct for grade in grades] == [True, False]
    assert 0 < grades[0].reward < 1 and grades[0].reward != grades[1].reward


class Judge(BaseHTTPRequestHandler):
    """A server whose marks are the last digit of the right answer in the prompt."""

    protocol_version = "HTTP/1.1"  # connections are kept

    def do_POST(self) -> None:
        prompt = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["prompt"]
        mark = re.findall(r"Right answer: \d*(\d)", prompt)[0]
        body = json.dumps({"choices": [{"text": f" {mark}\n"}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words: Any) -> None:
        """Say nothing."""


class JudgeServer(ThreadingHTTPServer):
    """With room for all connections that arrive at once."""

    request_queue_size = 64


def test_the_judge_of_the_page_is_asked() -> None:
    httpx = pytest.importorskip("httpx")
    grader = Grader("my_server.judged")
    with JudgeServer(("127.0.0.1", 0), Judge) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        client = httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.server_port}")
        importlib.import_module("my_server").CLIENT = client
        for _ in range(2):  # the client's connections are used again
            others = [{"problem": "?"}] * 20
            grades = grader.grade_all(["text"] * 20, list(range(20)), others=others)
            marks = [n % 10 / 10 - 0.5 for n in range(20)]
            assert [grade.reward for grade in grades] == pytest.approx(marks)
        server.shutdown()
