"""`vcppo report --watch`: the page follows the run, and nobody else can read it."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from lightning_vcppo.report.page import render
from lightning_vcppo.report.reading import read_runs
from lightning_vcppo.report.watching import WatchedPage, build_server
from tests.support.report_runs import metrics, write_csv, write_run
from tests.support.tiny_runs import ROOT, run_program


@contextmanager
def served(directory: Path) -> Iterator[str]:
    page = WatchedPage([directory], lambda: render(read_runs([directory])))
    with build_server(page) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


def fetch(address: str, **headers: str) -> str:
    with urlopen(Request(address, headers=headers), timeout=30) as answer:
        assert float(answer.headers["Refresh"]) > 0
        return answer.read().decode()


def test_the_page_follows_the_run(tmp_path: Path) -> None:
    with served(tmp_path) as address:
        assert "nothing to draw yet" in fetch(address)  # nothing is logged
        write_csv(tmp_path / "metrics.csv", metrics(rollouts=5))
        first = fetch(address)
        assert "5 rollouts" in first and fetch(address) == first
        write_csv(tmp_path / "metrics.csv", metrics(rollouts=7))
        assert "7 rollouts" in fetch(address)
        (tmp_path / "metrics.csv").write_text("step,a\n1,x\n")  # cannot be read now
        assert "7 rollouts" in fetch(address)


def test_other_names_and_paths_are_refused(tmp_path: Path) -> None:
    with served(tmp_path) as address:
        for wrong, headers in ((address + "metrics.csv", {}), (address, {"Host": "evil.org:80"})):
            with pytest.raises(HTTPError, match="404"):
                fetch(wrong, **headers)


def test_the_command_serves_until_it_is_interrupted(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    command = [sys.executable, "-m", "lightning_vcppo", "report", "run", "--watch"]
    process = subprocess.Popen(
        command, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        address = re.search(r"http://127\.0\.0\.1:\d+/", process.stdout.readline())
        assert address and "12 rollouts" in fetch(address[0])
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("port", [-1, 99999])
def test_a_port_out_of_range_is_refused(
    port: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run_program("report", write_run(tmp_path / "run"), "--watch", f"--port={port}")
    assert f"--port={port}: expected 0..65535" in capsys.readouterr().err


@pytest.mark.thorough
def test_a_browser_draws_the_served_page(tmp_path: Path) -> None:
    names = ("chromium", "chromium-browser", "google-chrome")
    browser = next(filter(None, map(shutil.which, names)), None)
    if browser is None:
        pytest.skip("no Chromium to open the page with")
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    command += ["--disable-background-networking", "--no-first-run", "--virtual-time-budget=3000"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr", "--dump-dom"]
    with served(write_run(tmp_path / "run")) as address:
        done = subprocess.run([*command, address], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "CONSOLE" not in done.stderr, done.stderr[-2000:]
    assert 'class="main-svg"' in done.stdout
