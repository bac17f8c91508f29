"""Define how the losses of tokens are aggregated."""

from __future__ import annotations

from typing import Literal

LossAggMode = Literal["token-mean", "seq-mean-token-mean", "seq-mean-token-sum"]
