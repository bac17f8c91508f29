"""Sampling from transformers models."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lightning_vcppo.generation import TransformersEngine
from lightning_vcppo.generation.sampling import sample_tokens
from lightning_vcppo.settings import SamplingSettings

PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13], [14, 15]]


@pytest.fixture(scope="module")
def model(tiny_actor):
    return AutoModelForCausalLM.from_pretrained(tiny_actor, dtype=torch.float32)


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
        torch.testing.assert_close(sampled.logprobs_BT[row], expected, atol=1e-5, rtol=0)


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
    settings = SamplingSettings(max_response_length=30)
    stops = {eos, *range(20, 60)}
    sampled = TransformersEngine(model, pad_token_id=0, eos_token_ids=stops).generate(
        PROMPTS * 8, list(range(32)), settings
    )
    for ids, mask, finished in zip(
        sampled.response_ids_BT.tolist(),
        sampled.response_mask_BT.tolist(),
        sampled.finished_B.tolist(),
        strict=True,
    ):
        length = sum(mask)
        assert mask == [True] * length + [False] * (len(mask) - length)
        assert not any(token in stops for token in ids[: length - 1])
        assert (ids[length - 1] in stops) == finished
        assert finished or length == 30
        assert ids[length:] == [0] * (len(ids) - length)
    assert int(sampled.finished_B.sum()) > 0
    assert sampled.logprobs_BT[~sampled.response_mask_BT].eq(0).all()


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
