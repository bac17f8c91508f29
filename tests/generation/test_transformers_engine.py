"""Sampling from transformers models."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config

from lightning_vcppo.generation import TransformersEngine, decoding, prompt_reader, slots
from lightning_vcppo.generation.sampling import sample_tokens, uniform_numbers
from lightning_vcppo.models.packing import enable_packing
from lightning_vcppo.settings import SamplingSettings
from tests.support.decoders import CONFIGS, ROUNDING, SIZES, decoder
from tests.support.rows import every
from tests.support.stopping import PROMPTS, assert_responses_end_where_they_should


@pytest.fixture(scope="module")
def model(tiny_actor):
    return AutoModelForCausalLM.from_pretrained(tiny_actor, dtype=torch.float64)


@pytest.fixture(scope="module")
def eos(tiny_actor):
    return AutoTokenizer.from_pretrained(tiny_actor).eos_token_id


def engine_for(model, *stops: int) -> TransformersEngine:
    return TransformersEngine(model, pad_token_id=0, eos_token_ids=set(stops))


def test_greedy_tokens_are_those_of_generate(model):
    settings = SamplingSettings(temperature=0.0, max_response_length=12)
    sampled = engine_for(model).generate(PROMPTS, [0] * 4, settings)
    for row, prompt in enumerate(PROMPTS):
        expected = model.generate(
            torch.tensor([prompt]), do_sample=False, max_new_tokens=12, min_new_tokens=12
        )
        got, wanted = sampled.response_ids_BT[row], expected[0, len(prompt) :]
        # `generate` may not stop early here, nor may we: no stop token is set.
        assert torch.equal(got, wanted)
    assert not sampled.finished_B.any()


def test_logprobs_are_those_of_one_forward_pass(model):
    settings = SamplingSettings(temperature=0.7, max_response_length=10)
    sampled = engine_for(model).generate(PROMPTS, [1, 2, 3, 4], settings)
    for row, prompt in enumerate(PROMPTS):
        response = sampled.response_ids_BT[row]
        logits = model(torch.cat([torch.tensor(prompt), response])[None]).logits[0] / 0.7
        expected = logits.log_softmax(-1)[len(prompt) - 1 : -1].gather(1, response[:, None])[:, 0]
        torch.testing.assert_close(sampled.logprobs_BT[row], expected, atol=ROUNDING, rtol=ROUNDING)


def test_a_seed_fixes_a_response_whatever_shares_its_batch(model):
    settings = SamplingSettings(max_response_length=16)
    stops = tuple(range(1, 40))  # of about 300 tokens: responses end at different times
    together = engine_for(model, *stops).generate(PROMPTS * 3, list(range(12)), settings)
    assert len(set(together.response_mask_BT.sum(1).tolist())) > 2
    for row in (0, 5, 11):
        alone = engine_for(model, *stops).generate([PROMPTS[row % 4]], [row], settings)
        length = int(alone.response_mask_BT.sum())
        assert length == int(together.response_mask_BT[row].sum())
        assert torch.equal(alone.response_ids_BT[0], together.response_ids_BT[row, :length])
    other = engine_for(model, *stops).generate(PROMPTS * 3, list(range(100, 112)), settings)
    assert not torch.equal(together.response_ids_BT, other.response_ids_BT)


def test_responses_end_with_the_stop_token_and_padding_follows(model, eos):
    stops = {eos, *range(20, 60)}
    assert_responses_end_where_they_should(engine_for(model, *stops), stops)


def test_sampled_frequencies_are_the_softmax():
    logits_RV = torch.tensor([0.0, 1.0, 2.0, -30.0]).expand(20_000, 4)
    uniform_R = torch.rand(20_000, generator=torch.Generator().manual_seed(0))
    token_R, logprob_R, _ = sample_tokens(logits_RV, uniform_R, SamplingSettings(temperature=2.0))
    probs_V = (logits_RV[0] / 2).softmax(0)
    frequencies_V = torch.bincount(token_R, minlength=4) / 20_000
    torch.testing.assert_close(frequencies_V, probs_V, atol=0.01, rtol=0)
    torch.testing.assert_close(logprob_R, probs_V.log()[token_R])


def test_top_p_keeps_the_smallest_sufficient_set():
    logits_RV = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().expand(1000, 4)
    uniform_R = torch.linspace(0, 1 - 1e-6, 1000)
    token_R, _, _ = sample_tokens(logits_RV, uniform_R, SamplingSettings(top_p=0.7))
    counts = torch.bincount(token_R, minlength=4).tolist()
    assert counts[2:] == [0, 0]
    assert counts[0] / 1000 == pytest.approx(0.5 / 0.8, abs=0.01)


def one_by_one(model, prompts, seeds, settings, stops):
    """Sample each response alone, with a forward pass over all of it for every token."""
    for prompt, seed in zip(prompts, seeds, strict=True):
        uniform_T = uniform_numbers([seed], settings.max_response_length)[0]
        ids, logprobs, entropies = list(prompt), [], []
        for uniform in uniform_T:
            logits_1V = model(torch.tensor([ids])).logits[:, -1]
            token, logprob, entropy = sample_tokens(logits_1V, uniform[None], settings)
            ids.append(int(token))
            logprobs.append(float(logprob))
            entropies.append(float(entropy))
            if ids[-1] in stops:
                break
        yield ids[len(prompt) :], logprobs, entropies


@pytest.mark.parametrize("rows", every(2, [3, 64]))
@pytest.mark.parametrize("kind", every(2, CONFIGS))
def test_every_response_is_the_one_sampled_alone(kind, rows, monkeypatch):
    """Few rows, so that sequences wait; little room, so that storage moves and grows."""
    monkeypatch.setattr(slots, "GROWTH", 5)
    monkeypatch.setattr(prompt_reader, "READ_AHEAD_TOKENS", 12)
    # Eager attention computes its softmax in float32, whatever the model.
    dtype, rounding = (torch.float32, 1e-4) if "eager" in kind else (torch.float64, ROUNDING)
    model = enable_packing(decoder(kind, dtype))
    generator = torch.Generator().manual_seed(3)
    prompts = [
        torch.randint(3, 40, (length,), generator=generator).tolist()
        for length in (4, 1, 9, 2, 2, 7, 1, 3)
    ]
    prompts = [prompts[0], prompts[0], *prompts]  # one of them three times
    settings = SamplingSettings(max_response_length=40, temperature=0.8)
    stops = {1, 2}
    engine = TransformersEngine(model, pad_token_id=0, eos_token_ids=stops, max_num_seqs=rows)
    sampled = engine.generate(prompts, range(10), settings)
    lengths = sampled.response_mask_BT.sum(1).tolist()
    assert min(lengths) < 15 and max(lengths) > 25
    with torch.no_grad():
        expected = one_by_one(model, prompts, range(10), settings, stops)
        for row, (ids, logprobs, entropies) in enumerate(expected):
            mask_T = sampled.response_mask_BT[row]
            assert sampled.response_ids_BT[row][mask_T].tolist() == ids
            assert bool(sampled.finished_B[row]) == (ids[-1] in stops)
            for actual_BT, wanted in (
                (sampled.logprobs_BT, logprobs),
                (sampled.entropy_BT, entropies),
            ):
                wanted_T = torch.tensor(wanted, dtype=dtype)
                torch.testing.assert_close(
                    actual_BT[row][mask_T], wanted_T, atol=rounding, rtol=rounding
                )
                assert actual_BT[row][~mask_T].eq(0).all()


@pytest.mark.parametrize("width", [0, 1024])
@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "llama"])
def test_the_lean_decoder_is_the_models_own_forward(kind, width, monkeypatch):
    model = decoder(kind, torch.float64)
    monkeypatch.setattr(decoding, "STACKED_WIDTH", width)
    assert isinstance(decoding.decoder_of(model), decoding.LeanDecoder)
    settings = SamplingSettings(max_response_length=20)
    lean = engine_for(model, 1).generate(PROMPTS, [1, 2, 3, 4], settings)
    monkeypatch.setattr(decoding, "LEAN_FAMILIES", set())
    plain = engine_for(model, 1).generate(PROMPTS, [1, 2, 3, 4], settings)
    assert torch.equal(lean.response_ids_BT, plain.response_ids_BT)
    torch.testing.assert_close(lean.logprobs_BT, plain.logprobs_BT, atol=ROUNDING, rtol=ROUNDING)


def test_a_prompt_is_read_once_however_often_it_is_sampled(monkeypatch):
    read = []
    original = prompt_reader.prefill
    monkeypatch.setattr(
        prompt_reader,
        "prefill",
        lambda model, prompts, pad: read.extend(prompts) or original(model, prompts, pad),
    )
    model = decoder("llama")
    prompts = [ids for ids in PROMPTS for _ in range(5)]
    engine = TransformersEngine(model, pad_token_id=0, eos_token_ids={1}, max_num_seqs=3)
    engine.generate(prompts, range(20), SamplingSettings(max_response_length=8))
    assert sorted(read) == sorted(map(tuple, PROMPTS))


def test_what_was_sampled_can_be_trained_on():
    """Tensors that remember inference mode could not be saved for a backward pass."""
    model = decoder("qwen2")
    sampled = engine_for(model, 1).generate(PROMPTS, [1, 2, 3, 4], SamplingSettings())
    assert not any(
        tensor.is_inference()
        for tensor in (sampled.response_ids_BT, sampled.logprobs_BT, sampled.entropy_BT)
    )


def test_other_layers_than_attention_are_refused():
    config = Qwen2Config(**SIZES, layer_types=["linear_attention", "full_attention"])
    with pytest.raises(ValueError, match="cannot cache LinearAttentionLayer"):
        slots.SlotCache(config, 2, 4, 8, torch.zeros(1))


def test_entropy_by_hand():
    logits_RV = torch.tensor([[0.0, 0.0, float("-inf"), float("-inf")], [5.0, -1e9, -1e9, -1e9]])
    _, logprob_R, entropy_R = sample_tokens(logits_RV, torch.tensor([0.1, 0.5]), SamplingSettings())
    torch.testing.assert_close(entropy_R, torch.tensor([2.0, 1.0]).log())
    torch.testing.assert_close(logprob_R, torch.tensor([0.5, 1.0]).log())
