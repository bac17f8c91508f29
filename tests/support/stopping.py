"""What every engine's responses must be like, wherever they end."""

from lightning_vcppo.generation import GenerationEngine
from lightning_vcppo.settings import SamplingSettings

PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13], [14, 15]]
LIMIT = 30


def assert_responses_end_where_they_should(engine: GenerationEngine, stops: set[int]) -> None:
    """Check that a response ends with its first stop token or at the limit, and padding follows.

    Args:
        engine: With 0 as its filler.
        stops: Tokens that end its responses, of which 32 responses must meet some.
    """
    settings = SamplingSettings(max_response_length=LIMIT)
    sampled = engine.generate(PROMPTS * 8, list(range(32)), settings)
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
        assert finished or length == LIMIT
        assert ids[length:] == [0] * (len(ids) - length)
    assert int(sampled.finished_B.sum()) > 0
    assert sampled.logprobs_BT[~sampled.response_mask_BT].eq(0).all()
