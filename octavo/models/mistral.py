"""Mistral: Llama's tensors, no biases, and a sliding window over every layer (`Arch.windows`)."""

from __future__ import annotations

from octavo.models.llama import parts

__all__ = ["parts"]
