"""The Llama architecture, lean enough to train on two CPU cores.

Parameter names are those of transformers' LlamaForCausalLM, so a state dict of one loads into the other.
Weights are held in float32 and computed with in `dtype`; the residual stream is in `dtype` too, as it is when
the finished model is served. Rows are padded on the right only, so the causal mask suffices.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Watched = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Widths and counts of the model; defaults are the bundled model's."""

    vocab: int = 4096
    hidden: int = 256
    ffn: int = 768
    layers: int = 6
    query_heads: int = 4
    kv_heads: int = 2
    head_width: int = 64
    max_tokens: int = 2048
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5

    def config(self) -> dict[str, object]:
        """The model's config.json."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": self.vocab,
            "hidden_size": self.hidden,
            "intermediate_size": self.ffn,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.query_heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_width,
            "hidden_act": "silu",
            "max_position_embeddings": self.max_tokens,
            "rms_norm_eps": self.norm_eps,
            "rope_theta": self.rope_theta,
            "rope_scaling": None,
            "attention_bias": False,
            "mlp_bias": False,
            "attention_dropout": 0.0,
            "tie_word_embeddings": True,
            "initializer_range": 0.02,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": [2, 6],
            "torch_dtype": "bfloat16",
            "use_cache": True,
        }


class Norm(nn.Module):
    """Root-mean-square norm with a gain, computed in float32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return (wide * scale * self.weight).to(x.dtype)


class Linear(nn.Linear):
    """A product without bias whose weight is cast to the dtype of its input."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__(width_in, width_out, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype))


def rope_tables(shape: Shape) -> tuple[Tensor, Tensor]:
    """Cosines and sines, [max_tokens, D] each."""
    half = torch.arange(0, shape.head_width, 2, dtype=torch.float32) / shape.head_width
    angles = torch.outer(torch.arange(shape.max_tokens, dtype=torch.float32), shape.rope_theta**-half)
    both = torch.cat((angles, angles), -1)
    return both.cos(), both.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply rotary positions to x [N, H, T, D]."""
    left, right = x.chunk(2, -1)
    return x * cos + torch.cat((-right, left), -1) * sin


class Attention(nn.Module):
    """Causal grouped-query attention. Where `watched` is a list, rotated queries and keys are added to it."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.q_proj = Linear(shape.hidden, shape.query_heads * shape.head_width)
        self.k_proj = Linear(shape.hidden, shape.kv_heads * shape.head_width)
        self.v_proj = Linear(shape.hidden, shape.kv_heads * shape.head_width)
        self.o_proj = Linear(shape.query_heads * shape.head_width, shape.hidden)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, watched: Watched | None = None) -> Tensor:
        N, T, _ = x.shape
        shape = self.shape
        q = self.q_proj(x).view(N, T, shape.query_heads, -1).transpose(1, 2)
        k = self.k_proj(x).view(N, T, shape.kv_heads, -1).transpose(1, 2)
        v = self.v_proj(x).view(N, T, shape.kv_heads, -1).transpose(1, 2)
        group = shape.query_heads // shape.kv_heads
        q = rotate(q, cos, sin)
        k = rotate(k, cos, sin).repeat_interleave(group, 1)
        v = v.repeat_interleave(group, 1)
        if watched is not None:
            watched.append((q, k))
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        mixed: Tensor = self.o_proj(out.transpose(1, 2).reshape(N, T, -1))
        return mixed


class FeedForward(nn.Module):
    """Gated feed-forward with SiLU."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = Linear(shape.hidden, shape.ffn)
        self.up_proj = Linear(shape.hidden, shape.ffn)
        self.down_proj = Linear(shape.ffn, shape.hidden)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class Layer(nn.Module):
    """One block: attention and feed-forward, each after its norm, each added to the stream."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.input_layernorm = Norm(shape.hidden, shape.norm_eps)
        self.self_attn = Attention(shape)
        self.post_attention_layernorm = Norm(shape.hidden, shape.norm_eps)
        self.mlp = FeedForward(shape)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, watched: Watched | None = None) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, watched)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class Stack(nn.Module):
    """Embedding, layers and the last norm."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocab, shape.hidden)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.norm = Norm(shape.hidden, shape.norm_eps)


class Llama(nn.Module):
    """The model; the output projection is the embedding."""

    cos: Tensor
    sin: Tensor

    def __init__(self, shape: Shape, dtype: torch.dtype, seed: int) -> None:
        super().__init__()
        self.shape, self.dtype = shape, dtype
        self.model = Stack(shape)
        cos, sin = rope_tables(shape)
        self.register_buffer("cos", cos.to(dtype), persistent=False)
        self.register_buffer("sin", sin.to(dtype), persistent=False)
        source = torch.Generator().manual_seed(seed)
        for name, weight in self.named_parameters():
            if weight.ndim == 2:
                std = 0.02 if "embed" in name else weight.shape[1] ** -0.5
                if name.endswith(("o_proj.weight", "down_proj.weight")):
                    std *= (2 * shape.layers) ** -0.5
                nn.init.normal_(weight, 0.0, std, generator=source)

    def hidden(self, tokens: Tensor, watched: Watched | None = None) -> Tensor:
        """Last hidden states [N, T, E] of tokens [N, T]; each layer's queries and keys are added to `watched`."""
        T = tokens.shape[1]
        x = F.embedding(tokens, self.model.embed_tokens.weight.to(self.dtype))
        cos, sin = self.cos[:T], self.sin[:T]
        for layer in self.model.layers:
            x = layer(x, cos, sin, watched)
        out: Tensor = self.model.norm(x)
        return out

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores [..., V] of hidden states [..., E]."""
        return F.linear(hidden, self.model.embed_tokens.weight.to(hidden.dtype))
