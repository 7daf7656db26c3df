"""How a layer looks back: attention with keys and values, and attention over a compressed latent.

Each kind lists its weights, what it costs to compare one query with one position, and what it keeps per token or per
sequence. `octavo.arch.states` has the kinds that keep a state of constant size instead.
"""

from __future__ import annotations

from dataclasses import dataclass

from octavo.arch.tensors import Matrix, Tensor, Vector


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """Query heads that share key and value heads (multi-head, grouped-query, multi-query).

    head_dim        width of a query and of a key
    value_dim       width of a value; None means head_dim
    window          a row at position p sees positions above p - window; None sees all
    chunk           positions are cut into stretches of this length, and a row sees its own only; None for no cut
    norm_elements   weights of the norms of queries and keys together
    gate_heads      heads whose output is multiplied by a gate computed from the layer's input
    has_sinks       one learned score per head that no position belongs to
    shares_kv       keys and values are those of an earlier layer: no such matrices here, and nothing kept
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    value_dim: int | None = None
    window: int | None = None
    chunk: int | None = None
    q_bias: bool = False
    kv_bias: bool = False
    o_bias: bool = False
    norm_elements: int = 0
    gate_heads: int = 0
    has_sinks: bool = False
    shares_kv: bool = False

    @property
    def value_width(self) -> int:
        return self.head_dim if self.value_dim is None else self.value_dim

    @property
    def reach(self) -> int | None:
        """Positions that a token sees at most, itself included; None for all."""
        return self.chunk if self.window is None else self.window

    @property
    def keeps(self) -> int | None:
        """Positions of a sequence that are kept at most; None for all."""
        return self.reach

    def tensors(self, hidden: int) -> tuple[Tensor, ...]:
        heads, kv_heads = self.num_heads, self.num_kv_heads
        found: list[Tensor] = [
            _heads("q", hidden, heads, self.head_dim, self.q_bias),
        ]
        if not self.shares_kv:
            found += [
                _heads("k", hidden, kv_heads, self.head_dim, self.kv_bias, repeats=True),
                _heads("v", hidden, kv_heads, self.value_width, self.kv_bias, repeats=True),
            ]
        if self.gate_heads:
            found.append(_heads("gate of heads", hidden, self.gate_heads, self.value_width, False))
        found.append(
            Matrix(
                name="o",
                part="output",
                inputs=heads * self.value_width,
                outputs=hidden,
                bias=self.o_bias,
                cut="in",
                units=heads,
            )
        )
        if self.norm_elements:
            found.append(Vector(name="q and k norms", part="norm", size=self.norm_elements))
        if self.has_sinks:
            found.append(Vector(name="sinks", part="qkv", size=heads, cut="out", units=heads))
        return tuple(found)

    def score_flop_per_pair(self) -> int:
        """Of q.k over all heads, for one query and one position."""
        return 2 * self.num_heads * self.head_dim

    def value_flop_per_pair(self) -> int:
        return 2 * self.num_heads * self.value_width

    def kv_elements_per_token(self) -> int:
        return 0 if self.shares_kv else self.num_kv_heads * (self.head_dim + self.value_width)


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentAttention:
    """Keys and values expanded from one short vector per token (multi-head latent attention, DeepSeek-V2).

    q_rank    width that queries pass through; None for a single matrix
    kv_rank   width of what is kept per token, beside the `rope_dim` elements of the one shared turned key
    nope_dim  part of a query and of a key that positions do not turn
    picks     positions a token sees at most, chosen by an indexer's scores; None for all
    index_heads, index_dim   the indexer: queries from the same narrow width, one key kept per token; 0 heads where an
              earlier layer's choice is used again

    Source: DeepSeek-AI 2024, arXiv 2405.04434, section 2.1; the indexer, `DeepseekV32Indexer` in transformers.
    """

    num_heads: int
    q_rank: int | None
    kv_rank: int
    nope_dim: int
    rope_dim: int
    value_dim: int
    has_bias: bool = False
    picks: int | None = None
    index_heads: int = 0
    index_dim: int = 0

    @property
    def head_dim(self) -> int:
        return self.nope_dim + self.rope_dim

    @property
    def reach(self) -> int | None:
        return self.picks

    @property
    def keeps(self) -> int | None:
        """All: any of them may be picked later."""
        return None

    def tensors(self, hidden: int) -> tuple[Tensor, ...]:
        heads, kept = self.num_heads, self.kv_rank
        found: list[Tensor] = []
        if self.q_rank is None:
            found.append(_heads("q", hidden, heads, self.head_dim, False))
        else:
            found += [
                Matrix(name="q down", part="qkv", inputs=hidden, outputs=self.q_rank, bias=self.has_bias),
                Vector(name="q norm", part="norm", size=self.q_rank),
                _heads("q up", self.q_rank, heads, self.head_dim, False),
            ]
        found += [
            Matrix(
                name="kv down", part="qkv", inputs=hidden, outputs=kept + self.rope_dim, bias=self.has_bias
            ),
            Vector(name="kv norm", part="norm", size=kept),
            _heads("kv up", kept, heads, self.nope_dim + self.value_dim, False),
            Matrix(
                name="o",
                part="output",
                inputs=heads * self.value_dim,
                outputs=hidden,
                bias=self.has_bias,
                cut="in",
                units=heads,
            ),
        ]
        return (*found[:-1], *self._indexer(hidden), found[-1])

    def _indexer(self, hidden: int) -> tuple[Tensor, ...]:
        if not self.index_heads:
            return ()
        width = self.index_heads * self.index_dim
        return (
            Matrix(name="index q", part="qkv", inputs=self.q_rank or hidden, outputs=width),
            Matrix(name="index k", part="qkv", inputs=hidden, outputs=self.index_dim),
            Vector(name="index norm", part="norm", size=2 * self.index_dim),
            Matrix(name="index weights", part="qkv", inputs=hidden, outputs=self.index_heads),
        )

    def index_flop_per_pair(self) -> int:
        """Of one query and one of all positions before it, whether it is picked or not."""
        return 2 * self.index_heads * self.index_dim

    def score_flop_per_pair(self, absorbed: bool = False) -> int:
        """Of one query and one position: over expanded keys, or over the latent where `kv up` has been multiplied
        into the query instead (`absorbed`; the same number of FLOPs per token as `kv up` itself)."""
        return 2 * self.num_heads * ((self.kv_rank if absorbed else self.nope_dim) + self.rope_dim)

    def value_flop_per_pair(self, absorbed: bool = False) -> int:
        return 2 * self.num_heads * (self.kv_rank if absorbed else self.value_dim)

    def expand_flop_per_token(self) -> int:
        """Of making one position's keys and values from its latent."""
        return 2 * self.kv_rank * self.num_heads * (self.nope_dim + self.value_dim)

    def kv_elements_per_token(self) -> int:
        return self.kv_rank + self.rope_dim + (self.index_dim if self.index_heads else 0)


def _heads(name: str, inputs: int, heads: int, width: int, bias: bool, *, repeats: bool = False) -> Matrix:
    return Matrix(
        name=name,
        part="qkv",
        inputs=inputs,
        outputs=heads * width,
        bias=bias,
        cut="out",
        units=heads,
        repeats=repeats,
    )
