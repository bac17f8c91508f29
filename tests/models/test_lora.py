"""Low-rank adapters: what they share, what they train, what they leave alone."""

import json
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import seed_everything

from lightning_vcppo.algorithm.statistics import identity
from lightning_vcppo.callbacks import ValuePretraining
from lightning_vcppo.generation import TransformersEngine, decoding
from lightning_vcppo.models import forward, loading, lora
from lightning_vcppo.models.critic import holds_pretrained_critic, load_critic
from lightning_vcppo.models.fingerprints import model_fingerprint
from lightning_vcppo.models.packing import enable_packing, reads_packed_rows
from lightning_vcppo.settings import LoRASettings, SamplingSettings
from tests.support.decoders import ROUNDING, VOCABULARY, decoder
from tests.support.rows import every
from tests.support.tiny_runs import TINY, run_program
from tests.support.training import EVERYTHING, LORA, SaveAfter, fit, make_module


def shake(model, seed=0):
    """Give adapters something to add: B starts at 0."""
    torch.manual_seed(seed)
    for layer in filter(lora.is_adapted, model.modules()):
        torch.nn.init.normal_(layer.lora_B["default"].weight, std=0.1)
    return model


def adapted(kind, dtype=torch.float32, **settings):
    model = enable_packing(decoder(kind, dtype))
    lora.adapt(model, LoRASettings(rank=4, **settings), seed=1)
    return model.to(dtype)


def by_name(model):
    return dict(model.named_parameters(remove_duplicate=False))


@pytest.fixture(scope="module")
def trained(tiny_actor, tmp_path_factory):
    """A run with adapters and a reference: two rollouts of value pretraining, two of the policy."""
    seed_everything(0)
    directory = tmp_path_factory.mktemp("lora")
    module = make_module(tiny_actor, lora=LORA, **EVERYTHING)
    schedule = ValuePretraining(max_rollouts=2, held_out_share=0.5, dirpath=str(directory))
    record = fit(module, 4, schedule, SaveAfter(1, directory / "early.ckpt"))
    record.trainer.save_checkpoint(directory / "last.ckpt")
    return module, record, directory


def test_a_merged_weight_by_hand():
    layer = SimpleNamespace(fan_in_fan_out=False, scaling={"default": 2.0})  # alpha 2, rank 1
    lora_A, lora_B = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0], [4.0]])
    merged = lora.merged_weight(layer, torch.eye(2), lora_A, lora_B)
    assert merged.tolist() == [[7.0, 12.0], [8.0, 17.0]]  # 1 + 2 (3 1), 2 (3 2), ...
    half = lora.merged_weight(layer, torch.eye(2, dtype=torch.bfloat16), lora_A, lora_B)
    assert half.dtype == torch.bfloat16 and torch.equal(half.float(), merged)


@pytest.mark.parametrize("kind", ["qwen2", "gemma3, mixed windows", "gpt2"])
def test_an_adapted_model_starts_as_its_base_to_the_last_bit(kind):
    base, model = decoder(kind), adapted(kind)
    ids_BL = torch.randint(1, VOCABULARY, (2, 9))
    assert torch.equal(model(ids_BL).logits, base(ids_BL).logits)
    assert model_fingerprint(model) == model_fingerprint(base)
    weights = dict(lora.plain_weights(model))
    assert weights.keys() == base.state_dict().keys()
    assert all(torch.equal(weights[name], w) for name, w in base.state_dict().items())
    assert model_fingerprint(shake(model)) != model_fingerprint(base)


@pytest.mark.parametrize("kind", ["qwen2", "gemma3, mixed windows", "gpt2"])
def test_merged_weights_compute_what_the_adapters_do(kind):
    model, merged = shake(adapted(kind, torch.float64)), decoder(kind, torch.float64)
    merged.load_state_dict(dict(lora.plain_weights(model)))
    ids_BL = torch.randint(1, VOCABULARY, (2, 9))
    logits_BLV = model(ids_BL).logits
    torch.testing.assert_close(merged(ids_BL).logits, logits_BLV, atol=ROUNDING, rtol=ROUNDING)
    assert (logits_BLV - decoder(kind, torch.float64)(ids_BL).logits).abs().max() > 1e-2


@pytest.mark.parametrize("width", [0, decoding.STACKED_WIDTH], ids=["called", "merged"])
@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "gemma3, mixed windows", "gpt2"])
def test_sampled_logprobs_are_those_of_training(kind, width, monkeypatch):
    monkeypatch.setattr(decoding, "STACKED_WIDTH", width)
    model = shake(adapted(kind, torch.float64)).train()
    loading.disable_dropout(model)
    prompts = [[5, 6, 7], [8], [9, 10, 11, 12, 13]]
    sampling = SamplingSettings(temperature=0.7, max_response_length=10)
    engine = TransformersEngine(model, pad_token_id=0, eos_token_ids={1, 2, 3})
    sampled = engine.generate(prompts, [1, 2, 3], sampling)
    for row, prompt in enumerate(prompts):
        response = sampled.response_ids_BT[row][sampled.response_mask_BT[row]]
        logits = model(torch.cat([torch.tensor(prompt), response])[None]).logits[0] / 0.7
        logprobs = logits.log_softmax(-1)[len(prompt) - 1 : -1]
        expected = logprobs.gather(1, response[:, None])[:, 0]
        torch.testing.assert_close(
            sampled.logprobs_BT[row, : len(response)], expected, atol=ROUNDING, rtol=ROUNDING
        )


@pytest.mark.parametrize("half", ["weights", "arithmetic"])
def test_adapters_that_bfloat16_would_round_away_are_not_merged_to_sample(half):
    layer = shake(adapted("qwen2")).model.layers[0].mlp.down_proj
    plain = torch.nn.Linear(2, 3)
    assert decoding.stack(layer) and decoding.stack(plain)
    if half == "weights":
        torch.nn.init.ones_(layer.base_layer.to(torch.bfloat16).weight)
        plain.to(torch.bfloat16)
        lora_A, lora_B = (getattr(layer, f"lora_{x}")["default"].weight for x in "AB")
        merged = lora.merged_weight(layer, layer.base_layer.weight, lora_A, lora_B / 1e4)
        assert torch.equal(merged, layer.base_layer.weight), "what has been learnt is lost"
    with torch.autocast("cpu", enabled=half == "arithmetic"):
        assert decoding.stack(layer) is None
        assert decoding.stack(plain)


def test_packed_rows_give_the_gradients_of_padded_ones():
    prompt_lengths_B = torch.tensor([3, 1, 2])
    mask_BT = torch.arange(9) < torch.tensor([2, 9, 4])[:, None]
    ids_BL = torch.randint(1, VOCABULARY, (3, 12))
    gradients = []
    for attention in ("sdpa", None):
        model = shake(adapted("qwen2", torch.float64))
        if attention:
            model.set_attn_implementation(attention)
        assert reads_packed_rows(model) is (attention is None)
        hidden_NH = forward.response_hidden(model.base_model, ids_BL, prompt_lengths_B, mask_BT)
        hidden_NH.square().sum().backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    padded, packed = gradients
    assert all(".lora_" in name for name in padded)
    for name, gradient in padded.items():
        torch.testing.assert_close(packed[name], gradient, atol=ROUNDING, rtol=ROUNDING)


def test_one_frozen_base_is_shared_and_adapters_and_head_are_trained(trained, tiny_actor):
    module, record, _ = trained
    actor, critic, reference = map(by_name, (module.actor, module.critic.model, module.reference))
    plain = loading.load_actor(str(tiny_actor)).state_dict()
    for name, weight in plain.items():
        assert torch.equal(reference[name], weight)
    for network in (actor, critic):
        for name, parameter in network.items():
            if ".lora_" in name or name.startswith("score."):
                assert parameter.requires_grad, name
            else:
                assert parameter is reference[lora.plain_name(name)], name
                assert not parameter.requires_grad
    everything = {p.data_ptr(): p for p in module.parameters()}
    frozen = sum(p.numel() for p in everything.values() if not p.requires_grad)
    assert frozen == sum(p.numel() for p in loading.load_actor(str(tiny_actor)).parameters())
    for optimizer, network in zip(record.trainer.optimizers, (actor, critic), strict=True):
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        assert held == {id(p) for p in network.values() if p.requires_grad}
        assert all(state["exp_avg"].abs().sum() > 0 for state in optimizer.state.values())
    assert critic["score.weight"].dtype == torch.float32
    assert not torch.equal(
        actor["model.layers.0.mlp.up_proj.lora_B.default.weight"],
        critic["model.layers.0.mlp.up_proj.lora_B.default.weight"],
    )


def test_each_loss_reaches_its_own_adapters_alone(trained):
    module, _, _ = trained
    rollout = module.rollout.with_(ref_logprobs_BT=None)
    networks = {"policy": module.actor, "critic": module.critic}
    for name, other in (("policy", "critic"), ("critic", "policy")):
        module.zero_grad()
        objective = module.objectives[name]
        weighed = objective.weigh(module.prepare_policy_update(rollout), identity)
        loss, _ = objective.loss(weighed)
        loss.backward()
        reached = {n for n, p in networks[name].named_parameters() if p.grad is not None}
        assert reached == {n for n, p in networks[name].named_parameters() if p.requires_grad}
        assert all(p.grad is None for p in networks[other].parameters())


def test_the_policy_moves_away_from_the_reference(trained):
    _, record, _ = trained
    assert record.metrics[-1]["policy/kl"] > 0
    first, *_, last = record.actors
    assert torch.equal(first, record.actors[1]) and not torch.equal(first, last)


def test_checkpoints_hold_adapters_and_heads(trained):
    _, _, directory = trained
    saved = torch.load(directory / "early.ckpt", weights_only=True)
    names = saved["state_dict"].keys()
    assert all(".lora_" in name or name.startswith("critic.model.score.") for name in names)
    assert {name.split(".")[0] for name in names} == {"actor", "critic"}
    schedule = next(v for k, v in saved["callbacks"].items() if k.startswith("ValuePretraining"))
    best = schedule["best_critic"]["weights"]
    assert best.keys() == {n.removeprefix("critic.") for n in names if n.startswith("critic.")}


def test_the_fitted_critic_is_written_whole(trained):
    module, _, directory = trained
    fitted = load_critic(str(directory / "critic"), module.value)
    assert fitted.head.weight.abs().sum() > 0
    assert holds_pretrained_critic(str(directory / "critic"))


@pytest.mark.thorough
@pytest.mark.parametrize("precision", every(2, ["32-true", "bf16-true"]))
@pytest.mark.parametrize("saved_after", every(2, [2, 4]))  # in value pretraining, and behind it
def test_a_resumed_run_equals_an_uninterrupted_one(tiny_actor, tmp_path, saved_after, precision):
    def run(*callbacks, **flags):
        seed_everything(0)
        module = make_module(tiny_actor, lora=LORA, activation_checkpointing=True, **EVERYTHING)
        schedule = ValuePretraining(max_rollouts=3, dirpath=str(tmp_path))
        return fit(module, 6, schedule, *callbacks, precision=precision, **flags)

    path = tmp_path / "middle.ckpt"
    whole, rest = run(SaveAfter(saved_after, path)), run(ckpt_path=path)
    assert len(rest.rollouts) == 6 - saved_after
    assert torch.equal(whole.actors[-1], rest.actors[-1])
    assert torch.equal(whole.critics[-1], rest.critics[-1])
    assert whole.rollouts[-1].responses == rest.rollouts[-1].responses
    module = rest.trainer.lightning_module
    assert all(p.dtype == torch.float32 for p in module.parameters() if p.requires_grad)


def test_a_checkpoint_without_adapters_is_refused_by_a_run_with_them(tiny_actor, tmp_path):
    fit(make_module(tiny_actor), 1).trainer.save_checkpoint(tmp_path / "x.ckpt")
    with pytest.raises(ValueError, match="the checkpoint has all weights and no adapters; omit"):
        fit(make_module(tiny_actor, lora=LORA), 1, ckpt_path=tmp_path / "x.ckpt")


def test_an_evaluation_reads_the_adapters_of_a_checkpoint(trained, tiny_actor, tmp_path, capfd):
    _, _, directory = trained
    checkpoint = f"--ckpt_path={directory / 'last.ckpt'}"
    merged = directory / "merged"
    run_program("export", checkpoint, f"--output={merged}")

    def evaluate(name, actor, *flags):
        output = f"--trainer.default_root_dir={tmp_path / name}"
        run_program("validate", f"--model.actor={actor}", *TINY, "--loggers=[csv]", output, *flags)
        (file,) = (tmp_path / name / "evaluation").glob("*.jsonl")
        return [json.loads(line)["response"] for line in file.read_text().splitlines()]

    lora = ["--model.lora.rank=4", "--model.lora.alpha=8", checkpoint]
    assert evaluate("one", tiny_actor, *lora) == evaluate("two", merged / "actor")
    with pytest.raises(SystemExit):
        evaluate("three", tiny_actor, checkpoint)
    assert "give the run's --model.lora.rank again" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        (LoRASettings(), "the checkpoint has adapters; give the run's --model.lora.rank again"),
        (LoRASettings(rank=2, alpha=8.0), r"--model.lora.rank: .* have 4, not 2"),
    ],
)
def test_a_checkpoint_with_other_adapters_is_refused(trained, tiny_actor, lora, message):
    _, _, directory = trained
    with pytest.raises(ValueError, match=message):
        fit(make_module(tiny_actor, lora=lora, **EVERYTHING), 1, ckpt_path=directory / "last.ckpt")


def test_adapters_are_refused_on_another_base(trained, tiny_actor, tmp_path):
    _, _, directory = trained
    other = loading.load_actor(str(tiny_actor))
    torch.nn.init.normal_(other.model.norm.weight)
    other.save_pretrained(tmp_path)
    loading.load_tokenizer(str(tiny_actor)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"--model.(actor|critic): .* holds other weights than"):
        module = make_module(tmp_path, lora=LORA, **EVERYTHING)
        fit(module, 1, ckpt_path=directory / "last.ckpt")


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        (["nowhere"], "--model.lora.target_modules: .*nowhere.* not found"),
        (["embed_tokens"], "--model.lora.target_modules: model.embed_tokens is not a linear layer"),
        (["input_layernorm"], "--model.lora.target_modules: .* is not supported"),
    ],
)
def test_layers_without_an_adapter_are_refused(modules, message):
    with pytest.raises(ValueError, match=message):
        adapted("qwen2", target_modules=modules)


def test_a_random_critic_cannot_have_adapters(tiny_actor):
    with pytest.raises(ValueError, match="critic: a model config has random weights"):
        make_module(tiny_actor, critic={"model_type": "qwen2"}, lora=LORA)


def test_a_critic_of_its_own_keeps_the_weights_that_differ(tiny_actor, trained):
    _, _, directory = trained
    seed_everything(0)
    module = make_module(tiny_actor, critic=str(directory / "critic"), lora=LORA)
    fit(module, 1)
    actor, critic = by_name(module.actor), by_name(module.critic.model)
    assert critic["model.embed_tokens.weight"] is actor["model.embed_tokens.weight"]
    name = "model.layers.0.mlp.up_proj.base_layer.weight"
    assert not torch.equal(critic[name], actor[name])  # the earlier critic's adapters are in it
