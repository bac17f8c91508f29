"""Ways in which the losses of tokens become one number."""

from __future__ import annotations

from typing import Literal

LossAggMode = Literal["token-mean", "seq-mean-token-mean", "seq-mean-token-sum"]
