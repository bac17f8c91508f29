import pytest

from lightning_vcppo.common.errors import EngineLostError
from lightning_vcppo.modules.lost_engine import together
from lightning_vcppo.settings import EngineSettings

SERVERS = EngineSettings("vllm_server", urls=["http://127.0.0.1:8000"])


def test_nothing_happens_while_every_rank_has_servers():
    told = []
    with together(SERVERS, lambda lost: told.append(lost) or 0):
        told.append("body")
    assert told == ["body", 0]


def test_a_rank_that_has_lost_them_tells_the_others_first():
    told = []
    with (
        pytest.raises(EngineLostError, match="here: refused"),
        together(SERVERS, lambda lost: told.append(lost) or lost),
    ):
        raise EngineLostError("here: refused")
    assert told == [1]


def test_the_others_end_with_it():
    with pytest.raises(EngineLostError, match="another rank"), together(SERVERS, lambda lost: 1):
        pass


def test_other_engines_exchange_nothing_and_other_errors_pass():
    def never(lost: int) -> int:
        raise AssertionError

    with together(EngineSettings(), never):
        pass
    with pytest.raises(OSError, match="full"), together(SERVERS, never):
        raise OSError("full")
