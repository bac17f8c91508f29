"""Count the weights of decoders of the Llama and Qwen families from their architecture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class ModelShape:
    """Architecture of a decoder of the Llama and Qwen families.

    Attributes:
        vocab_size: Rows of the embedding.
        hidden_size: Width of the residual stream.
        num_layers: Number of decoder layers.
        num_heads: Number of query heads.
        num_kv_heads: Number of key and value heads.
        head_dim: Width of a head.
        intermediate_size: Width of the gated MLP.
        tied: Whether embedding and head are one matrix.
        qkv_bias: Whether the projections of queries, keys and values have biases.
        qk_norm: Whether queries and keys are normalised.
    """

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    tied: bool
    qkv_bias: bool = False
    qk_norm: bool = False

    @property
    def query_width(self) -> int:
        """Width of all queries of a token."""
        return self.num_heads * self.head_dim

    @property
    def key_width(self) -> int:
        """Width of all keys of a token, and of its values."""
        return self.num_kv_heads * self.head_dim

    @property
    def projections(self) -> dict[str, tuple[int, int]]:
        """Inputs and outputs of the linear layers of a decoder layer."""
        hidden, inner = self.hidden_size, self.intermediate_size
        return {
            "q_proj": (hidden, self.query_width),
            "k_proj": (hidden, self.key_width),
            "v_proj": (hidden, self.key_width),
            "o_proj": (self.query_width, hidden),
            "gate_proj": (hidden, inner),
            "up_proj": (hidden, inner),
            "down_proj": (inner, hidden),
        }

    @property
    def layer_matrices(self) -> int:
        """Number of weights of the projections of a layer; each multiplies a token once."""
        return sum(inputs * outputs for inputs, outputs in self.projections.values())

    @property
    def layer_weights(self) -> int:
        """Number of all weights of a layer."""
        biases = self.query_width + 2 * self.key_width if self.qkv_bias else 0
        norms = 2 * self.hidden_size + (2 * self.head_dim if self.qk_norm else 0)
        return self.layer_matrices + biases + norms

    @property
    def embedding(self) -> int:
        """Number of weights of the embedding, and of the head."""
        return self.vocab_size * self.hidden_size

    @property
    def attention_matrices(self) -> int:
        """Number of weights of the projections of attention in a layer."""
        return 2 * self.hidden_size * (self.query_width + self.key_width)

    def part(self, name: Literal["none", "attention", "embeddings"]) -> int:
        """Return the number of weights of a part that may be frozen."""
        if name == "none":
            return 0
        if name == "embeddings":
            return self.embedding
        biases = self.query_width + 2 * self.key_width if self.qkv_bias else 0
        return self.num_layers * (self.attention_matrices + biases)

    def ladder(self, taps: int, width: int) -> int:
        """Return the number of weights of a side critic on this model, without its head."""
        hidden, taps = self.hidden_size, min(taps, self.num_layers)
        return taps * (hidden + 1 + hidden * width + width + 4 * width**2) + width

    @property
    def backbone(self) -> int:
        """Number of weights without a head."""
        return self.embedding + self.num_layers * self.layer_weights + self.hidden_size

    @property
    def weights(self) -> int:
        """Number of weights of the language model."""
        return self.backbone + (0 if self.tied else self.embedding)


def _qwen2_5(
    hidden: int, layers: int, heads: int, kv_heads: int, inner: int, vocabulary: int
) -> ModelShape:
    return ModelShape(
        vocab_size=vocabulary,
        hidden_size=hidden,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=hidden // heads,
        intermediate_size=inner,
        tied=hidden < 3584,
        qkv_bias=True,
    )


# Layers, heads and what is tied: table 1 of the Qwen2.5 report (arXiv 2412.15115). Widths and
# vocabularies: `config.json` of Qwen/Qwen2.5-* on the hub. A test counts the weights and compares
# them with the totals that the hub shows.
_QWEN2_5 = {
    "0.5B": _qwen2_5(896, 24, 14, 2, 4864, 151_936),
    "1.5B": _qwen2_5(1536, 28, 12, 2, 8960, 151_936),
    "7B": _qwen2_5(3584, 28, 28, 4, 18_944, 152_064),
    "14B": _qwen2_5(5120, 48, 40, 8, 13_824, 152_064),
    "32B": _qwen2_5(5120, 64, 40, 8, 27_648, 152_064),
}
PUBLISHED = {
    f"Qwen/Qwen2.5-{size}{kind}": shape
    for size, shape in _QWEN2_5.items()
    for kind in ("", "-Instruct")
}
"""Shapes of published models by hub id, available without the network."""
