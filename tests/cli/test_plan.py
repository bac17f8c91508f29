"""`vcppo plan` from configs and flags to what it prints; nothing is loaded."""

from unittest import mock

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from lightning_vcppo.cli.commands import plan
from lightning_vcppo.common.errors import USER_ERROR
from lightning_vcppo.planning.run import GB
from lightning_vcppo.planning.shapes import PUBLISHED
from tests.support.rows import every
from tests.support.tiny_runs import CONFIGS, run_program

QWEN = sorted(CONFIGS.glob("qwen2.5_*.yaml"))
GPUS = {"0.5b": 1, "1.5b": 8, "7b": 8, "32b": 64}


def planned(capsys, *arguments):
    plan.main([str(argument) for argument in arguments])
    return capsys.readouterr().out


def tiny(tiny_actor):
    return [
        *("--config", CONFIGS / "vcppo.yaml", f"--model.actor={tiny_actor}"),
        *("--trainer.accelerator=cpu", "--model.sampling.max_response_length=32"),
        *("--data.max_prompt_length=32", "--data.prompts_per_rollout=8"),
    ]


def read(tiny_actor, *arguments):
    """Return the run that arguments describe."""
    seen = []
    with mock.patch.object(plan, "print_plan", lambda run, *_: seen.append(run)):
        plan.main([str(a) for a in [*tiny(tiny_actor), "--gpus=2", *arguments]])
    return seen[0]


@pytest.mark.parametrize("path", every(2, QWEN), ids=lambda path: path.stem)
def test_a_run_of_qwen_fits_the_hardware_that_its_config_names(path, capsys):
    gpus = GPUS[path.stem.removeprefix("qwen2.5_")]
    device = "h200" if gpus == 64 else "h100"
    out = planned(capsys, "--config", path, f"--gpus={gpus}", f"--device={device}")
    assert "It fits" in out
    for part in ("weights", "gradients", "optimizer", "activations", "kv cache", "logits"):
        assert f"│ {part}" in out
    assert "together" in out and "sampling" in out


def test_what_does_not_fit_is_told_with_flags(tiny_actor, capsys):
    out = planned(
        capsys,
        *("--config", CONFIGS / "vcppo.yaml", "--model.actor=Qwen/Qwen2.5-7B"),
        *("--trainer.precision=bf16-mixed", "--gpus=8", "--gpu_memory=80"),
    )
    assert "It does not fit" in out and "--trainer.strategy=fsdp2" in out


def test_the_cpu_is_tried_out(tiny_actor, capsys):
    out = planned(capsys, *tiny(tiny_actor))
    assert "measured on this machine" in out and "one process" in out and "It fits" in out


def test_settings_become_a_run(tiny_actor):
    run = read(
        tiny_actor,
        *("--gpu_memory=24", "--response_length=20", "--model.policy.kl_coef=0.1"),
        *("--model.update.critic_epochs=3", "--trainer.precision=bf16-mixed"),
        *("--model.sampling.num_generations=4", "--model.update.ppo_mini_batch_size=16"),
        "--model.actor_optimizer.class_path=torch.optim.SGD",
    )
    assert (run.prompt_length, run.response_length, run.mean_response_length) == (32, 32, 20)
    assert (run.prompts, run.num_generations, run.responses) == (8, 4, 16)
    assert (run.epochs, run.critic_epochs, run.critic_mini_batch) == (1, 3, 16)
    assert (run.strategy, run.devices, run.memory) == ("ddp", 2, 24 * GB)
    assert run.reference and run.logprob_readings == 1 and run.moments == 0
    weights = sum(p.numel() for p in AutoModelForCausalLM.from_pretrained(tiny_actor).parameters())
    assert run.actor.weights == weights


def test_offloading_and_tf32_become_a_plan(tiny_actor, capsys):
    kinds = "[reference,idle_network]"
    run = read(tiny_actor, f"--model.offload={kinds}", "--model.policy.kl_coef=0.1")
    assert run.offload == ("reference", "idle_network")
    assert read(tiny_actor, "--model.kernels=liger").kernels == "liger"
    flags = ["--config", CONFIGS / "vcppo.yaml", "--model.actor=Qwen/Qwen2.5-0.5B", "--gpus=1"]
    plain = planned(capsys, *flags, "--float32_matmul_precision=highest")
    fast = planned(capsys, *flags, "--model.offload=[idle_network]")
    assert "in the host's memory" in fast and "in the host's memory" not in plain
    seconds = [float(out.rpartition("─")[0].split()[-3].replace(",", "")) for out in (plain, fast)]
    assert seconds[1] < seconds[0]


@pytest.mark.parametrize(
    ("flags", "readings"),
    every(
        2,
        [
            (["--trainer.precision=32-true"], 0),
            (["--trainer.precision=32-true", "--model.policy.old_logprobs=recomputed"], 1),
            (["--trainer.precision=bf16-mixed"], 1),
            (["--trainer.precision=bf16-mixed", "--model.policy.old_logprobs=sampler"], 0),
            (["--config=pact", "--trainer.precision=bf16-mixed"], 1),  # after the actor's update
        ],
    ),
)
def test_the_actor_reads_as_often_as_the_settings_ask_for(tiny_actor, flags, readings):
    assert read(tiny_actor, *flags).logprob_readings == readings


def test_strategies_engines_and_critics_are_understood(tiny_actor):
    run = read(
        tiny_actor,
        *(
            "--trainer.strategy=fsdp2",
            "--model.engine.name=vllm",
            "--model.advantage.lambda_actor=1",
        ),
        *("--model.engine.init_args={dtype: bfloat16}", "--model.critic=Qwen/Qwen2.5-0.5B"),
    )
    assert (run.strategy, run.shards, run.engine_bytes, run.engine) == ("fsdp2", 2, 2, "vllm")
    assert run.critic == PUBLISHED["Qwen/Qwen2.5-0.5B"]
    no_critic = read(
        tiny_actor, "--model.advantage.estimator=group", "--model.sampling.num_generations=2"
    )
    assert no_critic.critic is None


SERVED = ["--model.engine.name=vllm_server", "--model.engine.urls=[http://a:1, http://b:1]"]
COPY = "--model.engine.name=transformers_copy"


@pytest.mark.parametrize(
    ("flags", "sampling_devices", "engine_bytes"),
    every(
        6,
        [
            (SERVED, 2, 2),
            ([*SERVED, "--trainer.precision=32-true"], 2, 2),  # the server's own type
            (["--model.engine.name=vllm"], 0, 2),
            (["--model.engine.name=vllm", "--trainer.precision=32-true"], 0, 4),
            ([COPY], 0, 2),
            ([COPY, "--model.engine.init_args={device: cuda:1}"], 0, 2),  # the second trains, too
            ([COPY, "--model.engine.init_args={device: cuda:2}"], 1, 2),
            ([COPY, "--model.engine.init_args={device: cpu}"], 1, 2),
        ],
    ),
)
def test_devices_that_only_sample_are_counted(tiny_actor, flags, sampling_devices, engine_bytes):
    run = read(tiny_actor, "--trainer.precision=bf16-mixed", *flags)
    assert (run.sampling_devices, run.engine_bytes) == (sampling_devices, engine_bytes)
    assert run.logprob_readings == 1


def test_servers_take_no_memory_of_the_trainers(capsys):
    flags = ["--config", CONFIGS / "qwen2.5_1.5b.yaml", "--gpus=6", *SERVED]
    out = planned(capsys, *flags)
    assert "sampled on 2 others" in out and "It fits" in out
    cache = next(line for line in out.splitlines() if "kv cache" in line)
    assert cache.split("│")[2:-1] and {cell.strip() for cell in cache.split("│")[2:-1]} == {"0"}
    assert "vLLM needs 3." in planned(capsys, *flags, "--gpu_memory=3")  # 3.1 GB of weights


@pytest.mark.parametrize(
    ("arguments", "named"),
    every(
        3,
        [
            (["--model.actor=./nowhere", "--gpus=1"], "nowhere"),
            (["--device=h9000"], "--device: expected one of"),
            (["--gpus=0"], "--gpus: expected more than 0"),
            (
                ["--trainer.strategy=fsdp2_offload"],
                "--trainer.strategy: vcppo plan supports auto, ddp and fsdp2",
            ),
            (["--model=ColdStartModule"], "not of ColdStartModule"),
            (["--trainer.precision=transformer-engine"], "--trainer.precision"),
        ],
    ),
)
def test_a_mistake_is_told_in_one_line(tiny_actor, arguments, named, capsys):
    given = (
        [*tiny(tiny_actor), *arguments]
        if "ColdStart" not in arguments[0]
        else [
            *arguments,
            f"--model.actor={tiny_actor}",
        ]
    )
    with pytest.raises(SystemExit) as end:
        run_program("plan", *given)
    assert end.value.code == USER_ERROR
    said = capsys.readouterr().err.strip()
    assert named in said and "\n" not in said


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "qwen2", "tie_word_embeddings": False},
        {"model_type": "llama", "num_key_value_heads": 2, "tie_word_embeddings": True},
        {"model_type": "llama", "attention_bias": True, "head_dim": 16},
        {"model_type": "qwen3", "head_dim": 16, "tie_word_embeddings": True},
        {"model_type": "mistral", "num_key_value_heads": 2, "head_dim": 16},
    ],
)
def test_a_shape_has_the_weights_of_the_model(config):
    sizes = {
        "vocab_size": 50,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
    }
    read_config = AutoConfig.for_model(**sizes | {"num_key_value_heads": 4} | config)
    model = AutoModelForCausalLM.from_config(read_config)
    biases = sum(  # o_proj's, where a Llama has biases: 64 numbers that nobody misses
        p.numel() for name, p in model.named_parameters() if name.endswith("o_proj.bias")
    )
    weights = sum(p.numel() for p in model.parameters()) - biases
    assert plan.shape_of(read_config, "x").weights == weights


def test_bfloat16_is_proposed_with_numbers_where_float32_does_not_fit(capsys):
    flags = ["--config=vcppo", "--model.actor=Qwen/Qwen2.5-1.5B", "--gpus=1"]
    out = planned(capsys, *flags, "--gpu_memory=24")
    assert "  --model.offload=[idle_optimizer,idle_network]  ->  32.4 GB" in out.splitlines()
    assert "  --model.lora.rank=32  ->  25.2 GB" in out
    mixed, half = out.splitlines()[-2:]
    assert mixed.startswith(
        "  --trainer.precision=bf16-mixed  ->  101.6 GB, 17 s a rollout; it fits"
    )
    assert half.startswith(
        "  --trainer.precision=bf16-true --model.master_weights=stochastic  ->  "
    )
    assert "--model.lora" in mixed and "--model.lora" not in half  # all weights can be trained
    for others in (["--gpu_memory=200"], ["--gpu_memory=24", "--trainer.precision=bf16-true"]):
        assert "In bfloat16" not in planned(capsys, *flags, *others)


def test_bfloat16_is_not_proposed_with_a_flag_that_takes_it_back(capsys):
    flags = ["--config=vcppo", "--model.actor=Qwen/Qwen2.5-1.5B", "--gpus=1", "--gpu_memory=10"]
    mixed = planned(capsys, *flags).splitlines()[-2]
    assert mixed.startswith("  --trainer.precision=bf16-mixed") and mixed.endswith("not fit either")


@pytest.mark.parametrize(
    ("flags", "said"),
    every(
        3,
        [
            ([COPY], True),
            (["--model.engine.name=vllm"], True),
            ([COPY, "--model.engine.init_args={device: cuda:1}"], False),
            (SERVED, False),
        ],
    ),
)
def test_sampling_ahead_on_the_devices_that_train_is_called_what_it_is(capsys, flags, said):
    given = ["--config=vcppo", "--model.actor=Qwen/Qwen2.5-0.5B", "--gpus=1"]
    out = planned(capsys, *given, "--model.engine.rollouts_ahead=1", *flags)
    assert ("the devices that train also sample" in out) == said
    if flags == [COPY]:  # a second actor, and log-probabilities that are read anew
        assert "11 s a rollout and 59.7 GB; in turn 9.9 s and 57.7 GB" in out
