"""Which file knows which family. `octavo.arch.FAMILIES` says which architecture names belong to one."""

from __future__ import annotations

from collections.abc import Callable

from octavo.arch import FAMILIES, Arch
from octavo.models import llama, mistral, qwen2, qwen3
from octavo.models.parts import DecoderParts

PARTS: dict[str, Callable[[Arch], DecoderParts]] = {
    "llama": llama.parts,
    "mistral": mistral.parts,
    "qwen2": qwen2.parts,
    "qwen3": qwen3.parts,
}


def parts_of(arch: Arch) -> DecoderParts:
    """Tensor names and shapes of a model."""
    return PARTS[arch.family](arch)


def supported_architectures() -> tuple[str, ...]:
    """What `architectures` in a config.json may say."""
    return tuple(name for family in FAMILIES for name in family.architectures)
