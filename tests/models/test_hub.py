"""Models that are neither on the disk nor on a hub that answers."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from lightning_vcppo.common.suggestions import near_file
from lightning_vcppo.data import AIMEDataModule
from lightning_vcppo.models import hub, loading


@pytest.fixture(autouse=True)
def _asked_anew() -> Iterator[None]:
    hub.fault_of_hub.cache_clear()
    yield
    hub.fault_of_hub.cache_clear()


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> str:
    """Let the hub be at a port on which nothing listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return endpoint


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("models/smollm", "models/smollm2"),
        ("modls/smollm2", "models/smollm2"),
        ("./modls/smolm2", "models/smollm2"),
        ("modls", "models"),
        ("models/smollm2", None),
        ("quite/another", None),
    ],
)
def test_each_part_of_a_path_is_corrected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, meant: str | None
) -> None:
    (tmp_path / "models" / "smollm2").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert near_file(Path(name)) == (f"; did you mean {meant}?" if meant else "")
    assert near_file(tmp_path / name) == (f"; did you mean {tmp_path / meant}?" if meant else "")


def test_a_hub_that_does_not_answer_is_asked_once_and_named(
    no_network: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models" / "smollm2").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for name, end in [
        ("modls/smollm2", "; did you mean models/smollm2?"),
        ("nobody/nothing", "--local-dir DIRECTORY) and give its directory"),
    ]:
        with pytest.raises(ValueError) as error:
            loading.load_tokenizer(name)
        line = str(error.value)
        assert line.startswith(f"{name}: no such directory (expected a tokenizer), and the hub ")
        assert f"no connection to {no_network} (Connection refused)" in line and line.endswith(end)
    assert hub.fault_of_hub.cache_info().misses == 1


def test_a_data_set_is_not_asked_for_again_and_again(
    no_network: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    connect = socket.socket.connect

    def count(self: socket.socket, address: tuple[str, int]) -> None:
        asked.append(str(address))
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", count)
    module = AIMEDataModule("nobody/nothing", tokenizer="unread", val_size=1)
    with pytest.raises(ValueError) as error:
        module.setup("fit")
    assert str(error.value) == (
        "nobody/nothing: cannot be read as a data set, the hub cannot be asked for it: "
        f"no connection to {no_network} (Connection refused)"
    )
    assert len(asked) == 1
    assert not constants.HF_HUB_OFFLINE


def test_an_answer_of_any_kind_means_that_the_hub_is_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        answer = b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"

        def serve() -> None:
            with server.accept()[0] as connection:
                connection.recv(4096)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        assert hub.fault_of_hub() == ""
        thread.join()


def test_what_must_be_a_directory() -> None:
    assert all(map(hub.is_path, ("./a", "../a/b", "/a", "~/a", "a/b/c", ".\\a")))
    assert not any(map(hub.is_path, ("a", "Qwen/Qwen2.5-0.5B")))
