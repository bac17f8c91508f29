"""The real vLLM, on the CPU: `make test-vllm`.

Both sides compute in float32 and differ by the order of their sums alone: 1e-6 a log-probability
was seen, 1e-5 is allowed, as for the transformers engine.
"""

from __future__ import annotations

import csv
import gc
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from lightning.pytorch import Callback
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

pytest.importorskip("vllm", reason="vLLM is not installed: make test-vllm", exc_type=ImportError)

from lightning_vcppo.data.tiny_tokenizer import default_tokenizer
from lightning_vcppo.generation import TransformersEngine, VLLMEngine
from lightning_vcppo.models import loading
from lightning_vcppo.models.hf_folders import write_folder
from lightning_vcppo.settings import EngineSettings, SamplingSettings
from tests.support.partial_runs import assert_complete, assert_each_token_is_of_its_weights
from tests.support.stopping import PROMPTS, assert_responses_end_where_they_should
from tests.support.tiny_runs import (
    ROLLOUTS,
    ROOT,
    TINY,
    TINY_QWEN2,
    assert_finite,
    logged,
    logged_keys,
    vcppo,
)
from tests.support.training import fit as run_module
from tests.support.training import make_module

SMALL = {"kv_cache_memory_bytes": 2**26, "max_num_seqs": 16}
SETTINGS = EngineSettings("vllm", max_model_len=128, init_args=SMALL)
FLAGS = ["--model.engine.name=vllm", f"--model.engine.init_args={json.dumps(SMALL)}"]


@pytest.fixture(scope="module")
def actor_directory(tmp_path_factory):
    """A Qwen2 whose heads are wide enough for vLLM's attention on the CPU."""
    tokenizer = default_tokenizer(320)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        actor = loading.build_actor(TINY_QWEN2 | {"hidden_size": 64}, tokenizer)
    directory = tmp_path_factory.mktemp("vllm") / "actor"
    write_folder(directory, actor, tokenizer)
    return directory


@pytest.fixture
def model(actor_directory):
    return loading.load_actor(str(actor_directory))


def engine_for(model, *stops: int, settings: EngineSettings = SETTINGS) -> VLLMEngine:
    engine = VLLMEngine(
        model, settings, device=model.device, pad_token_id=0, eos_token_ids=set(stops)
    )
    engine.take_weights(0)
    return engine


def greedy(engine) -> torch.Tensor:
    settings = SamplingSettings(temperature=0.0, max_response_length=12)
    return engine.generate(PROMPTS, [0] * 4, settings).response_ids_BT


def move(model) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))


@torch.no_grad()
def trainers_logprobs(model, prompt, response, temperature) -> torch.Tensor:
    logits = model(torch.cat([torch.tensor(prompt), response])[None]).logits[0] / temperature
    return logits.log_softmax(-1)[len(prompt) - 1 : -1].gather(1, response[:, None])[:, 0]


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_logprobs_are_the_trainers_at_the_sampling_temperature(model, temperature):
    settings = SamplingSettings(temperature=temperature, max_response_length=10)
    sampled = engine_for(model).generate(PROMPTS, [1, 2, 3, 4], settings)
    for row, prompt in enumerate(PROMPTS):
        expected = trainers_logprobs(model, prompt, sampled.response_ids_BT[row], temperature or 1)
        torch.testing.assert_close(sampled.logprobs_BT[row], expected, atol=1e-5, rtol=0)


def test_greedy_tokens_change_as_the_trainers_do(model):
    torch.manual_seed(0)
    engine = engine_for(model)
    trainer = TransformersEngine(model, pad_token_id=0, eos_token_ids=set())
    seen = []
    for update in range(1, 4):
        assert torch.equal(greedy(engine), greedy(trainer))
        seen.append(greedy(engine))
        move(model)
        assert torch.equal(greedy(engine), seen[-1])  # vLLM has a copy
        engine.take_weights(update - 1)
        assert torch.equal(greedy(engine), seen[-1])  # the version says: nothing new
        engine.take_weights(update)
    assert not torch.equal(seen[0], seen[1]) and not torch.equal(seen[1], seen[2])
    move(model)
    engine.forget_weights()
    engine.take_weights(update)
    assert torch.equal(greedy(engine), greedy(trainer))


def test_a_seed_fixes_a_response_whatever_shares_its_batch(model):
    settings = SamplingSettings(max_response_length=16)
    engine = engine_for(model, *range(1, 40))  # of about 300 tokens: they end at different times
    together = engine.generate(PROMPTS * 8, [2**62 + i for i in range(32)], settings)
    assert len(set(together.response_mask_BT.sum(1).tolist())) > 2
    for row in (0, 5, 31):
        alone = engine.generate([PROMPTS[row % 4]], [2**62 + row], settings)
        length = int(alone.response_mask_BT.sum())
        assert length == int(together.response_mask_BT[row].sum())
        assert torch.equal(alone.response_ids_BT[0], together.response_ids_BT[row, :length])
    other = engine.generate(PROMPTS * 8, list(range(100, 132)), settings)
    assert other.response_ids_BT.tolist() != together.response_ids_BT.tolist()


def test_prompts_that_fill_more_than_one_batch_of_vllm_are_sampled(model):
    arguments = SMALL | {"max_num_batched_tokens": 128}
    engine = engine_for(model, settings=replace(SETTINGS, init_args=arguments))
    prompts, settings = [PROMPTS[0] * 10] * 16, SamplingSettings(max_response_length=4)
    assert 128 % len(prompts[0])  # the last prompt of a batch does not fit
    sampled = engine.generate(prompts, list(range(16)), settings)
    alone = engine.generate(prompts[-1:], [15], settings)
    assert torch.equal(sampled.response_ids_BT[-1:], alone.response_ids_BT)


def test_responses_end_with_the_stop_token_and_padding_follows(model):
    stops = set(range(20, 60))
    assert_responses_end_where_they_should(engine_for(model, *stops), stops)


def test_the_tail_is_cut_by_top_p_and_its_logprobs_are_not_made_up(model):
    settings = SamplingSettings(top_p=1e-6, max_response_length=12)
    engine = engine_for(model)
    sampled = engine.generate(PROMPTS, [0] * 4, settings)
    assert torch.equal(sampled.response_ids_BT, greedy(engine))
    assert sampled.logprobs_BT.isnan().all()


def test_the_trainers_precision_and_random_state_stay_apart(model):
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    expected = greedy(engine_for(model))
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        torch.set_default_dtype(torch.bfloat16)
        try:
            # Else vLLM would compute as the trainer does, in bfloat16.
            arguments = SMALL | {"dtype": "float32"}
            settings = EngineSettings("vllm", max_model_len=128, init_args=arguments)
            engine = engine_for(model, settings=settings)
            sampled = engine.generate(PROMPTS, [1] * 4, SamplingSettings(max_response_length=10))
            assert torch.get_default_dtype() == torch.bfloat16
        finally:
            torch.set_default_dtype(torch.float32)
    response = sampled.response_ids_BT[0]
    wanted = trainers_logprobs(model, PROMPTS[0], response, 1.0)
    torch.testing.assert_close(sampled.logprobs_BT[0], wanted, atol=1e-5, rtol=0)
    move(model)
    engine.take_weights(1)  # built under inference mode, updated outside
    assert not torch.equal(greedy(engine), expected)
    torch.set_num_threads(2)
    assert torch.get_num_threads() == 2
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    greedy(engine)
    assert torch.equal(torch.get_rng_state(), before)
    torch.set_rng_state(state)


def test_an_engine_that_goes_leaves_the_process_group_and_the_others_alone(model):
    first, second = engine_for(model), engine_for(model)
    expected = greedy(first)
    del first
    gc.collect()
    assert torch.distributed.is_initialized()
    assert torch.equal(greedy(second), expected)


def test_mistakes_are_named(model):
    engine = engine_for(model)
    with pytest.raises(ValueError, match=r"max_model_len: a prompt of 5 tokens .* up to 124"):
        engine.generate(PROMPTS, [0] * 4, SamplingSettings(max_response_length=124))
    with pytest.raises(ValueError, match=r"vLLM cannot be started: .*no_such_argument"):
        engine_for(model, settings=EngineSettings("vllm", init_args={"no_such_argument": 1}))


def test_top_p_and_the_correction_exclude_each_other(actor_directory, tmp_path):
    run = ["fit", f"--model.actor={actor_directory}", *ROLLOUTS, *FLAGS]
    with pytest.raises(ValueError, match=r"sampling.top_p: with 0.9, vLLM's log-probs"):
        vcppo(*run, "--model.sampling.top_p=0.9")


def fit(actor_directory, directory, *flags) -> None:
    vcppo(
        *("fit", f"--model.actor={actor_directory}", *ROLLOUTS, *FLAGS, "--loggers=[csv]"),
        *("--model.sampling.num_generations=2", "--model.update.ppo_mini_batch_size=8"),
        *("--model.actor_optimizer.lr=0.001", "--trainer.limit_train_batches=5"),
        "--data.train_size=60",  # five rollouts
        *("--trainer.callbacks+=tests.support.tiny_runs.WeightsWatcher", *flags),
        f"--trainer.default_root_dir={directory}",
    )


class SaveAfterThree(Callback):
    """Save a checkpoint after the third rollout."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx == 2:
            trainer.save_checkpoint(Path(trainer.default_root_dir, "three.ckpt"))


def test_parts_of_a_response_have_the_logprobs_of_their_own_weights(actor_directory):
    engine = replace(SETTINGS, partial_length=2)
    run = run_module(make_module(actor_directory, engine=engine), 9)
    learned = assert_each_token_is_of_its_weights(actor_directory, run)
    assert_complete(learned, 8, run.trainer.lightning_module.sampler.stop_token_ids())


def weights(directory: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (directory / "weights_0.jsonl").read_text().splitlines()]


def test_updates_and_a_resume(actor_directory, tmp_path):
    fit(actor_directory, tmp_path / "whole")
    assert_finite(tmp_path / "whole")
    assert {"eval/accuracy", "policy/loss", "critic/loss"} <= logged_keys(tmp_path / "whole")
    rollouts = [row for row in logged(tmp_path / "whole") if "mismatch/kl_k3" in row]
    assert [row["step"] for row in rollouts] == [2, 3, 4, 5]  # the first is value pretraining
    for row in rollouts:
        assert abs(row["mismatch/kl_k1"]) < 1e-5 and row["mismatch/kl_k3"] < 1e-9
        assert row["mismatch/ess"] == pytest.approx(1, abs=1e-4)
        assert row["mismatch/weight_mean"] == pytest.approx(1, abs=1e-4)
    whole = weights(tmp_path / "whole")
    assert len({row["actor"] for row in whole}) == 5  # frozen in the first, then four updates
    fit(
        actor_directory,
        tmp_path / "part",
        "--trainer.callbacks+=tests.generation.test_vllm_engine.SaveAfterThree",
    )
    fit(actor_directory, tmp_path / "rest", f"--ckpt_path={tmp_path}/part/three.ckpt")
    assert weights(tmp_path / "rest") == whole[3:]


def test_evaluation_reads_what_transformers_reads(actor_directory, tmp_path):
    for name, flags in {"vllm": FLAGS, "transformers": []}.items():
        vcppo(
            *("validate", f"--model.actor={actor_directory}", *TINY, *flags, "--loggers=[csv]"),
            *("--model.evaluation.temperature=0", f"--trainer.default_root_dir={tmp_path / name}"),
        )
    files = [next((tmp_path / name).rglob("rollouts_*.jsonl")) for name in ("vllm", "transformers")]
    assert files[0].read_text() == files[1].read_text()


def test_each_rank_has_an_engine_of_its_own(actor_directory, tmp_path):
    arguments = [
        *("fit", f"--model.actor={actor_directory}", *ROLLOUTS, *FLAGS, "--loggers=[csv]"),
        *("--trainer.strategy=ddp", "--trainer.devices=2"),
        "--data.val_size=1",  # the second rank has no problem
        *("--model.actor_optimizer.lr=0.001", f"--trainer.default_root_dir={tmp_path}"),
        "--trainer.callbacks+=tests.support.tiny_runs.WeightsWatcher",
    ]
    command = [sys.executable, "-m", "lightning_vcppo", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    first, second = ((tmp_path / f"weights_{rank}.jsonl").read_text() for rank in (0, 1))
    assert first == second and len(first.splitlines()) == 3
    with (tmp_path / "metrics.csv").open() as file:
        assert "mismatch/kl_k3" in next(csv.reader(file))


def test_each_rank_gathers_a_sharded_actor(actor_directory, model, tmp_path):
    mp.spawn(_sample_from_shards, (str(actor_directory), str(tmp_path)), nprocs=2)
    trainer = TransformersEngine(model, pad_token_id=0, eos_token_ids=set())
    for rank in range(2):
        sampled = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert torch.equal(sampled["before"], greedy(trainer))
        assert torch.equal(sampled["after"], sampled["expected"])
        assert not torch.equal(sampled["after"], sampled["before"])


def _sample_from_shards(rank: int, directory: str, output: str) -> None:
    dist.init_process_group("gloo", f"file://{output}/store", rank=rank, world_size=2)
    sharded, whole = loading.load_actor(directory), loading.load_actor(directory)
    fully_shard(sharded, mesh=init_device_mesh("cpu", (2,)))
    engine = engine_for(sharded)
    sampled = {"before": greedy(engine)}
    with torch.no_grad():
        for parameter in (*sharded.parameters(), *whole.parameters()):
            parameter.neg_()
    engine.take_weights(1)
    trainer = TransformersEngine(whole, pad_token_id=0, eos_token_ids=set())
    sampled |= {"after": greedy(engine), "expected": greedy(trainer)}
    torch.save(sampled, f"{output}/{rank}.pt")
    dist.destroy_process_group()
