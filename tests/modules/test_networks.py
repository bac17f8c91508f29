"""What a checkpoint fixes of the critic."""

from __future__ import annotations

from typing import Any

import pytest

from lightning_vcppo.checkpointing.format import Keys
from lightning_vcppo.modules.networks import NetworkLoader
from lightning_vcppo.settings import LoRASettings, ValueSettings


def loader(**value: Any) -> NetworkLoader:
    return NetworkLoader("actor", "critic", None, ValueSettings(**value), LoRASettings(), False)


def checkpoint_of(**value: Any) -> dict[str, Any]:
    checkpoint: dict[str, Any] = {}
    loader(**value).save(checkpoint)
    return checkpoint


def resume(checkpoint: dict[str, Any], **value: Any) -> None:
    loader(**value).restore(checkpoint)


@pytest.mark.parametrize(
    ("saved", "changed"),
    [
        ({"head": "scalar"}, {"head": "sigmoid"}),
        ({"head": "bounded"}, {"value_min": -2.0}),
        ({"head": "sigmoid"}, {"value_max": 2.0}),
        ({"head": "hl_gauss"}, {"value_max": 2.0}),
        ({"head": "hl_gauss"}, {"num_bins": 31}),
        ({"freeze": "embeddings"}, {"freeze": "none"}),
        ({"privileged_prompt": "answer"}, {"privileged_prompt": "none"}),
    ],
)
def test_what_gives_the_critics_outputs_their_meaning_is_kept(
    saved: dict[str, Any], changed: dict[str, Any]
) -> None:
    checkpoint = checkpoint_of(**saved)
    resume(checkpoint, **saved)
    (name,) = changed
    with pytest.raises(ValueError, match=rf"^--model\.value\.{name}: the checkpoint's critic has"):
        resume(checkpoint, **saved | changed)


def test_what_a_head_does_not_read_may_change() -> None:
    resume(checkpoint_of(head="scalar"), head="scalar", num_bins=31, value_max=2.0)
    resume(checkpoint_of(head="bounded"), head="bounded", num_bins=31, loss="huber")


def test_a_checkpoint_without_the_head_is_accepted() -> None:
    checkpoint = checkpoint_of(head="sigmoid")
    del checkpoint[Keys.CRITIC]["head"]
    resume(checkpoint, head="scalar")
