"""Qwen3: Llama's tensors, a head width of its own, and q and k normalised per head before they are turned."""

from __future__ import annotations

from dataclasses import replace

from octavo.arch import Arch
from octavo.models import llama
from octavo.models.parts import DecoderParts, Weight


def parts(arch: Arch) -> DecoderParts:
    """Llama's, and in each layer a norm weight [D] for q and one for k."""
    base = llama.parts(arch)
    layers = tuple(
        replace(
            layer,
            q_norm=Weight(f"model.layers.{i}.self_attn.q_norm.weight", (arch.head_dim,)),
            k_norm=Weight(f"model.layers.{i}.self_attn.k_norm.weight", (arch.head_dim,)),
        )
        for i, layer in enumerate(base.layers)
    )
    return replace(base, layers=layers)
