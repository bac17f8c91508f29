import json
import shlex

import pytest

from lightning_vcppo.cli.commands import serve


def flags(*arguments: str, on_cpu: bool = False, **init_args) -> list[str]:
    own = serve._parser().parse_args(["--model.actor=a", *arguments])
    return serve.flags_for_vllm(own, init_args, on_cpu=on_cpu)


def test_it_listens_on_the_loopback_address_unless_told_otherwise():
    assert "--host=127.0.0.1" in flags() and "--host=0.0.0.0" in flags("--host=0.0.0.0")
    assert [serve._is_loopback(host) for host in ("127.0.0.1", "::1", "localhost")] == [True] * 3
    assert not any(serve._is_loopback(host) for host in ("0.0.0.0", "::", "10.0.0.1", "node-3"))
    assert serve.url("::1", 8000) == "http://[::1]:8000"
    assert serve.url("127.0.0.1", 8001) == "http://127.0.0.1:8001"


def test_vllm_gets_our_flags_and_the_users_come_last():
    assert {"--dtype=bfloat16", "--no-enforce-eager", "--load-format=dummy"} <= {*flags()}
    on_cpu = {"--dtype=float32", "--enforce-eager", "--no-enable-chunked-prefill"}
    assert on_cpu <= {*flags(on_cpu=True)} and not on_cpu & {*flags()}
    given = flags("--model.engine.max_model_len=512", dtype="float16", compilation_config={"a": 1})
    assert {"--dtype=float16", "--max-model-len=512"} <= {
        *given
    } and "--dtype=bfloat16" not in given
    assert "--compilation-config=" + json.dumps({"a": 1}) in given
    assert not [flag for flag in given if "token" in flag and "tokenizer" not in flag]
    assert shlex.join(given).count("lightning_vcppo.generation.vllm_worker.") == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model.actor=a", "--port=0"], r"--port: expected 1..65535, got 0"),
        (["--model.actor=a", "--model.engine.init_args={"], "init_args: expected JSON"),
        (["--model.actor=a", "--model.engine.init_args=[]"], "expected {name: value}"),
    ],
)
def test_mistakes_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        serve.main(arguments)
