"""A Llama as the textbook has it: dense, float64, one sequence, nothing cached. Shares no code with octavo."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


def logits(config: dict[str, Any], weights: dict[str, Tensor], tokens: list[int]) -> Tensor:
    """Logits [T, V] after every token, float64. Honours `sliding_window`; plain RoPE only."""
    w = {name: tensor.double() for name, tensor in weights.items()}
    x = w["model.embed_tokens.weight"][tokens]
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        x = x + _attention(
            config, w, f"{layer}.self_attn", _norm(config, x, w[f"{layer}.input_layernorm.weight"])
        )
        x = x + _mlp(w, f"{layer}.mlp", _norm(config, x, w[f"{layer}.post_attention_layernorm.weight"]))
    head = w.get("lm_head.weight", w["model.embed_tokens.weight"])
    return _norm(config, x, w["model.norm.weight"]) @ head.T


def logprobs(config: dict[str, Any], weights: dict[str, Tensor], tokens: list[int]) -> Tensor:
    """Log-probabilities [T, V] of what follows each token."""
    return logits(config, weights, tokens).log_softmax(-1)


def budget(config: dict[str, Any], num_tokens: int, largest_logit: float) -> float:
    """How far float32 logits may lie from these, first order.

    A sum of n products is off by at most n rounding units (2^-24) of its terms' size. On the longest way through
    the model lie, per layer, the sums over E (q), D and T (attention), H D (o), E (gate) and F (down), and at the
    end one over E. Norms keep the relative error, up to a factor 2 for the root of the mean.
    """
    hidden, ffn, width = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    layer = 2 * hidden + width + num_tokens + config["num_attention_heads"] * width + ffn
    bound: float = 2 * 2.0**-24 * (config["num_hidden_layers"] * layer + hidden) * largest_logit
    return bound


def _norm(config: dict[str, Any], x: Tensor, weight: Tensor) -> Tensor:
    normed: Tensor = x / (x.pow(2).mean(-1, keepdim=True) + config["rms_norm_eps"]).sqrt() * weight
    return normed


def _mlp(w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    gate = x @ w[f"{name}.gate_proj.weight"].T
    return (gate * torch.sigmoid(gate) * (x @ w[f"{name}.up_proj.weight"].T)) @ w[
        f"{name}.down_proj.weight"
    ].T


def _attention(config: dict[str, Any], w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    width, count = config["head_dim"], len(x)
    window = config.get("sliding_window") or count
    parts = [(x @ w[f"{name}.{part}_proj.weight"].T).view(count, -1, width) for part in "qkv"]
    q, k, v = _turn(parts[0], config["rope_theta"]), _turn(parts[1], config["rope_theta"]), parts[2]
    share = q.shape[1] // k.shape[1]
    out = torch.zeros_like(q)
    for head in range(q.shape[1]):
        for position in range(count):
            first = max(0, position - window + 1)
            keys, values = (t[first : position + 1, head // share] for t in (k, v))
            out[position, head] = ((keys @ q[position, head]) / math.sqrt(width)).softmax(-1) @ values
    return out.reshape(count, -1) @ w[f"{name}.o_proj.weight"].T


def _turn(x: Tensor, theta: float) -> Tensor:
    """Dimension i turns with dimension i + D/2, by position / theta ** (2 i / D)."""
    count, _, width = x.shape
    speeds = theta ** (-torch.arange(0, width, 2).double() / width)
    angles = torch.outer(torch.arange(count).double(), speeds)[:, None, :]
    left, right = x[..., : width // 2], x[..., width // 2 :]
    return torch.cat(
        [left * angles.cos() - right * angles.sin(), right * angles.cos() + left * angles.sin()], -1
    )
