"""From a model folder to a `Model`: everything checked first, then one tensor at a time.

Nothing from the folder is executed, and pickles are never read.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from octavo.arch import DTYPE_BYTES, Arch
from octavo.errors import ConfigError, LoadError
from octavo.models.checkpoint import Checkpoint, check_dtypes, stored_dtype
from octavo.models.layers import Attention, Layer, Mlp
from octavo.models.model import Model
from octavo.models.ops import Linear, Ops
from octavo.models.parts import DecoderParts, LayerParts, Projection, Weight
from octavo.models.random_weights import RandomWeights
from octavo.models.registry import parts_of
from octavo.models.rope import RopeTables

LOAD_FORMATS = ("auto", "random")
_COMPUTED = ".rotary_emb.inv_freq"  # a buffer that old exports wrote; we compute it


class Source(Protocol):
    """Where weights come from: a checkpoint, or a seed."""

    def fill(self, name: str, target: Tensor) -> bytes:
        """Write one tensor into `target` and return a digest of it."""


def load(
    model: str | Path | Arch,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "cpu",
    *,
    load_format: str = "auto",
    seed: int = 0,
) -> Model:
    """Load a model and choose its kernels.

    model        a folder in Hugging Face layout; or a lone config.json, or an Arch: then weights are random
    dtype        "auto" is what config.json says, else what the checkpoint holds, else float32
    load_format  "auto", or "random" to ignore the weights of a folder
    seed         of random weights

    There is one copy of the weights in memory: tensors are copied out of the memory-mapped files one by
    one. `Model.fingerprint` covers their digests (`Checkpoint.fill` says of how many bytes), the config
    fields that change keys and values, the dtype, and the kernels: another kernel may round differently.

    Raises LoadError before anything is allocated when folder, config and headers do not agree; ConfigError
    for an unknown dtype or load_format; KernelUnavailable.
    """
    if load_format not in LOAD_FORMATS:
        raise ConfigError(f"load_format must be one of {', '.join(LOAD_FORMATS)}, got {load_format!r}")
    wanted, device = _wanted_dtype(dtype), torch.device(device)
    arch = model if isinstance(model, Arch) else Arch.from_file(model)
    folder = None if isinstance(model, Arch) else Path(model)
    if folder is None or not folder.is_dir() or load_format == "random":
        return _build(arch, RandomWeights(seed), wanted or _stated_dtype(arch) or torch.float32, device)
    with Checkpoint(folder) as checkpoint:
        parts = parts_of(arch)
        _check(parts, arch, checkpoint)
        resolved = wanted or _stated_dtype(arch) or stored_dtype(checkpoint.entries[parts.embedding.name])
        return _build(arch, checkpoint, resolved, device)


def _wanted_dtype(dtype: str | torch.dtype) -> torch.dtype | None:
    name = str(dtype).removeprefix("torch.")
    if name == "auto":
        return None
    if name not in DTYPE_BYTES:
        raise ConfigError(f"dtype must be auto, {', '.join(DTYPE_BYTES)}, got {name}")
    return getattr(torch, name)


def _stated_dtype(arch: Arch) -> torch.dtype | None:
    return None if arch.dtype is None else _wanted_dtype(arch.dtype)


def _check(parts: DecoderParts, arch: Arch, checkpoint: Checkpoint) -> None:
    """The checkpoint must hold every tensor of the model in its shape, and none that would be ignored."""
    expected = {weight.name: weight.shape for weight in parts.weights()}
    missing = [name for name in expected if name not in checkpoint.entries]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise LoadError(
            f"{checkpoint.folder}: tensor {missing[0]}{more} is missing; expected shape "
            f"{list(expected[missing[0]])}, found {len(checkpoint.entries)} tensors of which "
            f"{len(expected) - len(missing)} belong to this {arch.family} model"
        )
    for name, entry in checkpoint.entries.items():
        if name in expected:
            if entry.shape != expected[name]:
                raise LoadError(
                    f"{entry.file}: {name} has shape {list(entry.shape)}; "
                    f"config.json asks for {list(expected[name])}"
                )
        elif name == "lm_head.weight" and parts.head is None:
            if not checkpoint.holds_same(name, parts.embedding.name):
                raise LoadError(
                    f"{entry.file}: {name} differs from {parts.embedding.name}, and config.json says "
                    f"tie_word_embeddings: true; expected the two to be equal, or the field to be false"
                )
        elif not name.endswith(_COMPUTED):
            raise LoadError(
                f"{entry.file}: {name} belongs to no part of a {arch.family} model as config.json describes "
                f"it, and would be ignored; expected a config.json that accounts for every tensor"
            )
    check_dtypes(checkpoint.entries, expected)


class _Builder:
    """Fills tensors from a source in the order of computation and remembers their digests."""

    def __init__(self, source: Source, ops: Ops, dtype: torch.dtype, device: torch.device) -> None:
        self.source, self.ops, self.dtype, self.device = source, ops, dtype, device
        self.digests: dict[str, bytes] = {}

    def tensor(self, weight: Weight) -> Tensor:
        target = torch.empty(weight.shape, dtype=self.dtype, device=self.device)
        self.digests[weight.name] = self.source.fill(weight.name, target)
        return target

    def optional(self, weight: Weight | None) -> Tensor | None:
        return None if weight is None else self.tensor(weight)

    def linear(self, part: Projection) -> Linear:
        return self.ops.linear(self.tensor(part.weight), self.optional(part.bias))

    def layer(self, arch: Arch, part: LayerParts, window: int | None) -> Layer:
        return Layer(
            attention_norm=self.tensor(part.attention_norm),
            attention=Attention(
                ops=self.ops,
                q=self.linear(part.q),
                k=self.linear(part.k),
                v=self.linear(part.v),
                o=self.linear(part.o),
                q_norm=self.optional(part.q_norm),
                k_norm=self.optional(part.k_norm),
                head_dim=arch.head_dim,
                norm_eps=arch.norm_eps,
                window=window,
            ),
            mlp_norm=self.tensor(part.mlp_norm),
            mlp=Mlp(
                ops=self.ops,
                gate=self.linear(part.gate),
                up=self.linear(part.up),
                down=self.linear(part.down),
            ),
        )


@torch.no_grad()
def _build(arch: Arch, source: Source, dtype: torch.dtype, device: torch.device) -> Model:
    ops = Ops(arch, dtype, device)
    builder = _Builder(source, ops, dtype, device)
    parts = parts_of(arch)
    embedding = builder.tensor(parts.embedding)
    layers = tuple(
        builder.layer(arch, part, window) for part, window in zip(parts.layers, arch.windows, strict=True)
    )
    final_norm = builder.tensor(parts.final_norm)
    head = ops.linear(embedding if parts.head is None else builder.tensor(parts.head))
    return Model(
        arch=arch,
        dtype=dtype,
        device=device,
        fingerprint=_fingerprint(arch, dtype, ops, builder.digests),
        ops=ops,
        rope=RopeTables(arch.rope, arch.head_dim, device, ops.tables),
        embedding=embedding,
        layers=layers,
        final_norm=final_norm,
        head=head,
    )


def _fingerprint(arch: Arch, dtype: torch.dtype, ops: Ops, digests: dict[str, bytes]) -> bytes:
    """See `load`. Tensors are taken by name, so that sharding changes nothing."""
    digest = hashlib.sha256(arch.digest())
    kernels = sorted({(decision.op, decision.impl) for decision in ops.decisions})
    digest.update(f"{dtype} {kernels}".encode())
    for name in sorted(digests):
        digest.update(hashlib.sha256(name.encode()).digest() + digests[name])
    return digest.digest()
