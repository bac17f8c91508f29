"""Updates of bfloat16 weights that rounding would lose: kept in three ways, saved, and resumed."""

from copy import deepcopy

import pytest
import torch
from lightning.pytorch import seed_everything
from torch import nn

from lightning_vcppo.modules import master_weights
from lightning_vcppo.modules.master_weights import PreciseOptimizer, round_stochastically
from lightning_vcppo.modules.optimizers import build_optimizer
from lightning_vcppo.settings import LoRASettings, OptimizerSettings
from tests.support.decoders import VOCABULARY, decoder
from tests.support.rows import every
from tests.support.training import SaveAfter, fit, make_module, weights

KINDS = ["float32", "kahan", "stochastic"]
SMALL = OptimizerSettings(lr=1e-6)
BF16 = {"precision": "bf16-true"}


def loss_of(model) -> torch.Tensor:
    ids_BL = torch.arange(24).reshape(2, 12) % VOCABULARY
    logits = model(input_ids=ids_BL).logits.double()
    return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids_BL[:, 1:].flatten())


def exact_loss(model) -> float:
    """Return the loss of the weights as they are, without the rounding of its computation."""
    with torch.no_grad():
        return float(loss_of(deepcopy(model).double()))


def train(kind: str, steps: int, settings: OptimizerSettings = SMALL):
    model = decoder("qwen2", torch.bfloat16)
    optimizer = build_optimizer(settings, model.parameters(), kind, seed=1)
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(model).backward()
        optimizer.step()
    return model, optimizer


@pytest.fixture(scope="module")
def falls() -> dict[str, float]:
    """How far 150 steps at 1e-6 lower the loss; float32 weights are the measure."""
    start = exact_loss(decoder("qwen2", torch.bfloat16))
    with pytest.warns(UserWarning, match="round a step away.*master_weights=kahan"):
        lost, _ = train("none", 150)
    kept = {kind: train(kind, 150)[0] for kind in KINDS}
    return {kind: start - exact_loss(model) for kind, model in (kept | {"none": lost}).items()}


@pytest.mark.thorough
def test_training_at_small_rates_goes_nowhere_in_bfloat16(falls):
    assert falls["none"] < 0.1 * falls["float32"]


@pytest.mark.thorough
@pytest.mark.parametrize("kind", ["kahan", "stochastic"])
def test_training_at_small_rates_learns_as_with_float32(falls, kind):
    assert falls["float32"] > 0
    assert falls[kind] == pytest.approx(falls["float32"], rel=0.15)


def given_gradients(kind: str, steps: int):
    """Step one matrix with gradients that do not depend on it."""
    generator = torch.Generator().manual_seed(0)
    weight = nn.Parameter(torch.randn(40, 50, generator=generator).mul(0.02).bfloat16())
    optimizer = build_optimizer(SMALL, [weight], kind)
    for _ in range(steps):
        weight.grad = torch.randn(40, 50, generator=generator).bfloat16()
        optimizer.step()
    return weight.detach(), optimizer


def test_kahans_sum_is_that_of_float32():
    """Each step rounds a compensation of at most 2^-9 |w| to 8 bits, so by at most 2^-18 |w|."""
    steps = 60
    exact, of_exact = given_gradients("float32", steps)
    kahan, of_kahan = given_gradients("kahan", steps)
    whole = kahan.float() + of_kahan.state_dict()["state"][0]["compensation"].float()
    master = of_exact.state_dict()["state"][0]["master_weight"]
    largest = float(master.abs().max())
    # and one more rounding of each sum to the 24 bits of float32
    assert float((whole - master).abs().max()) <= steps * (2**-18 + 2**-24) * largest
    assert torch.equal(exact, master.bfloat16())
    assert float((kahan.float() - exact.float()).abs().max()) <= 2**-8 * largest  # a last digit


def test_stochastic_rounding_is_unbiased_and_seeded():
    number = 1 + 2**-7 * 0.3  # between 1 and 1 + 2^-7, its neighbour
    numbers = torch.tensor([number, -number]).repeat_interleave(40_000)
    rounded = round_stochastically(numbers, torch.Generator().manual_seed(3))
    assert rounded.dtype == torch.bfloat16
    assert set(rounded.abs().tolist()) == {1.0, 1 + 2**-7}
    up = (rounded.abs() > 1).float().reshape(2, -1).mean(1)
    # five standard deviations of a mean of 40,000 draws
    assert (up - 0.3).abs().max() < 5 * (0.3 * 0.7 / 40_000) ** 0.5
    again = round_stochastically(numbers, torch.Generator().manual_seed(3))
    other = round_stochastically(numbers, torch.Generator().manual_seed(4))
    assert torch.equal(rounded, again) and not torch.equal(rounded, other)


def test_stochastic_rounding_leaves_bfloat16_numbers_and_infinity_alone():
    numbers = torch.tensor([0.0, -0.0, 1.5, -3.0, float("inf"), float("-inf")])
    assert torch.equal(round_stochastically(numbers, torch.Generator()).float(), numbers)


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_step_keeps_does_not_depend_on_how_many_weights_go_at_once(kind, monkeypatch):
    together = weights(train(kind, 3)[0])
    monkeypatch.setattr(master_weights, "WEIGHTS_AT_ONCE", 1)
    assert torch.equal(weights(train(kind, 3)[0]), together)


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_optimizer_goes_on_as_if_it_had_not_stopped(kind):
    model, optimizer = train(kind, 3)
    saved = deepcopy((model.state_dict(), optimizer.state_dict()))
    moments = [v["exp_avg"].dtype for v in saved[1]["state"].values()]
    assert set(moments) == {torch.float32}
    resumed = decoder("qwen2", torch.bfloat16)
    resumed.load_state_dict(saved[0])
    of_resumed = build_optimizer(SMALL, resumed.parameters(), kind, seed=99)  # the saved one wins
    of_resumed.load_state_dict(saved[1])
    for network, its in ((model, optimizer), (resumed, of_resumed)):
        for _ in range(3):
            its.zero_grad()
            loss_of(network).backward()
            its.step()
    assert torch.equal(weights(model), weights(resumed))


@pytest.mark.parametrize("name", ["torch.optim.SGD", "torch.optim.Adafactor", "torch.optim.NAdam"])
def test_other_optimizers_are_wrapped_with_their_arguments(name):
    settings = OptimizerSettings(lr=1e-4, class_path=name, init_args={"weight_decay": 0.5})
    model, optimizer = train("kahan", 1, settings)
    assert isinstance(optimizer, PreciseOptimizer)
    assert optimizer.param_groups[0]["weight_decay"] == 0.5
    assert not torch.equal(weights(model), weights(decoder("qwen2", torch.bfloat16)))


def test_float32_parameters_are_stepped_as_ever():
    half, full = (nn.Parameter(torch.ones(4, 4, dtype=d)) for d in (torch.bfloat16, torch.float32))
    alone = nn.Parameter(torch.ones(4, 4))
    plain, mixed = build_optimizer(SMALL, [alone]), build_optimizer(SMALL, [half, full], "kahan")
    for parameter in (half, full, alone):
        parameter.grad = torch.full_like(parameter, 2.0)
    plain.step(), mixed.step()
    assert torch.equal(full, alone) and mixed.state[full] == {}
    assert isinstance(build_optimizer(SMALL, [full], "kahan"), torch.optim.AdamW)


# In a run ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", every(4, ["none", *KINDS]))
def test_a_run_that_is_stopped_goes_on_bit_for_bit(kind, tiny_actor, tmp_path):
    seed_everything(0)
    changes = {"master_weights": kind, "actor_optimizer": SMALL, "critic_optimizer": SMALL}
    path = tmp_path / "stopped.ckpt"
    complete = make_module(tiny_actor, **changes)
    before = weights(complete.build(complete.load_actor).bfloat16())
    fit(complete, 4, SaveAfter(2, path), **BF16)
    resumed = make_module(tiny_actor, **changes)
    fit(resumed, 4, ckpt_path=path, **BF16)
    for name in ("actor", "critic"):
        assert torch.equal(weights(getattr(complete, name)), weights(getattr(resumed, name)))
    moved = (weights(complete.actor) != before).double().mean()
    assert moved < 0.1 if kind == "none" else moved > 0.0
    if kind == "kahan":
        with pytest.raises(ValueError, match=f"trained with {kind}, got none"):
            fit(make_module(tiny_actor), 4, ckpt_path=path, **BF16)


def test_the_best_critic_comes_back_with_its_master_weights(tiny_actor):
    module = make_module(tiny_actor, master_weights="float32")
    fit(module, 1, **BF16)
    optimizer = module.trainer.optimizers[1]
    state = module.critic_state()
    before = weights(module.critic)
    module.critic.requires_grad_(True)
    for parameter in module.critic.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    module.restore_critic(state)
    assert torch.equal(weights(module.critic), before)
    for kept, saved in zip(
        optimizer.state_dict()["state"].values(), state["optimizer"]["state"].values(), strict=True
    ):
        assert kept.keys() == saved.keys()
        assert all(torch.equal(kept[key], saved[key]) for key in kept)


def test_adapters_are_float32_anyway(tiny_actor):
    module = make_module(tiny_actor, master_weights="kahan", lora=LoRASettings(rank=2))
    fit(module, 1, **BF16)
    assert [type(optimizer) for optimizer in module.trainer.optimizers] == [torch.optim.AdamW] * 2


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"precision": "32-true"}, "expected --trainer.precision=bf16-true, got 32-true"),
        ({"precision": "bf16-mixed"}, "expected --trainer.precision=bf16-true, got bf16-mixed"),
        ({"precision": "bf16-true", "strategy": "fsdp2"}, "not supported with fsdp2; use"),
    ],
)
def test_master_weights_are_refused_where_there_is_nothing_to_keep(tiny_actor, flags, message):
    with pytest.raises(ValueError, match=rf"--model.master_weights=kahan: {message}"):
        fit(make_module(tiny_actor, master_weights="kahan"), 1, devices=1, **flags)
