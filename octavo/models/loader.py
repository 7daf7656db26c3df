"""From a model folder to a `Model`: everything checked first, then one tensor at a time.

Nothing from the folder is executed, and pickles are never read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from octavo.arch import DTYPE_BYTES, Arch
from octavo.errors import Bug, ConfigError, LoadError
from octavo.kernels import native, rope
from octavo.kernels.linear import Codes
from octavo.kv.layout import PANEL
from octavo.models.checkpoint import Checkpoint, check_dtypes, stored_dtype
from octavo.models.layers import Attention, Layer, Mlp
from octavo.models.model import Model, TorchModel
from octavo.models.native import NativeLayer, NativeModel
from octavo.models.ops import Decision, Linear, Ops, check_variance, decisions_of
from octavo.models.parts import DecoderParts, LayerParts, Projection, Weight
from octavo.models.random_weights import RandomWeights
from octavo.models.registry import parts_of
from octavo.models.rope import RopeTables
from octavo.planner.codes import CODES, HEAD_CODES

LOAD_FORMATS = ("auto", "random")
_COMPUTED = ".rotary_emb.inv_freq"  # a buffer that old exports wrote; we compute it


class Source(Protocol):
    """Where weights come from: a checkpoint, or a seed."""

    def fill(self, name: str, target: Tensor) -> bytes:
        """Write one tensor into `target` and return a digest of it. Raises LoadError unless all of it is finite."""

    def pieces(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Iterator[Tensor]:
        """One matrix [O, I] as consecutive groups of rows, all but the last a multiple of 16, without copies where
        the stored dtype is the one asked for. A piece is good until the next is asked for, and is not checked."""

    def digest(self, name: str) -> bytes:
        """What `fill` would return; to be asked once, after `pieces`."""

    def not_finite(self, name: str, dtype: torch.dtype) -> LoadError:
        """The error of a tensor that holds infinite or undefined values when cast."""


def load(
    model: str | Path | Arch,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "cpu",
    *,
    load_format: str = "auto",
    seed: int = 0,
    kernels: str = "auto",
    quantization: str | None = None,
    has_fp8_kv: bool = False,
    batch_invariant: bool = True,
) -> Model:
    """Load a model and choose its kernels.

    model        a folder in Hugging Face layout; or a lone config.json, or an Arch: then weights are random
    dtype        "auto" is what config.json says, else what the checkpoint holds, else float32
    load_format  "auto", or "random" to ignore the weights of a folder
    seed         of random weights
    kernels      "auto", "reference", or an instruction set; see `octavo.kernels.native.choose`
    quantization None, or a name of `octavo.config.QUANTIZATION`: weights are rounded while they are packed
    has_fp8_kv   keys and values lie in e4m3; not where compiled kernels run
    batch_invariant  False also takes kernels under which a row's bits depend on its company; only where there are any

    There is one copy of the weights in memory: tensors are copied out of the memory-mapped files one by one, or
    packed straight from them. `Model.fingerprint` covers their digests (`Checkpoint.digest` says of how many bytes),
    the config fields that change keys and values, the dtype, and the kernels: another kernel may round differently.

    Raises LoadError before anything is allocated when folder, config and headers do not agree; ConfigError
    for an unknown dtype or load_format, for kernels that cannot serve, and for a quantization that the kernels do
    not read; KernelUnavailable.
    """
    if load_format not in LOAD_FORMATS:
        raise ConfigError(f"load_format must be one of {', '.join(LOAD_FORMATS)}, got {load_format!r}")
    wanted, device = _wanted_dtype(dtype), torch.device(device)
    arch = model if isinstance(model, Arch) else Arch.from_file(model)
    folder = None if isinstance(model, Arch) else Path(model)
    if folder is None or not folder.is_dir() or load_format == "random":
        resolved = wanted or _stated_dtype(arch) or torch.float32
        return _build(
            arch, RandomWeights(seed), resolved, device, kernels, quantization, has_fp8_kv, batch_invariant
        )
    with Checkpoint(folder) as checkpoint:
        parts = parts_of(arch)
        _check(parts, arch, checkpoint)
        resolved = wanted or _stated_dtype(arch) or stored_dtype(checkpoint.entries[parts.embedding.name])
        return _build(arch, checkpoint, resolved, device, kernels, quantization, has_fp8_kv, batch_invariant)


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

    def __init__(
        self, source: Source, ops: Ops, dtype: torch.dtype, device: torch.device, quantization: str | None
    ) -> None:
        self.source, self.ops, self.dtype, self.device = source, ops, dtype, device
        self.format = None if quantization is None else CODES[quantization]
        self.head_format = None if quantization is None else HEAD_CODES
        self.digests: dict[str, bytes] = {}
        self.weight_bytes = 0

    def tensor(self, weight: Weight) -> Tensor:
        return self.stacked([weight])

    def optional(self, weight: Weight | None) -> Tensor | None:
        return None if weight is None else self.tensor(weight)

    def linear(self, *parts: Projection) -> Linear:
        """Projections of one input beneath one another: each is read into its own rows of one weight."""
        weights = [part.weight for part in parts]
        weight = self.stacked(weights) if self.format is None else self.codes(weights, self.format)
        biases = [part.bias for part in parts if part.bias is not None]
        if not biases:
            return self.ops.linear(weight)
        if len(biases) == len(parts):
            return self.ops.linear(weight, self.stacked(biases))
        raise Bug(f"of {parts[0].weight.name} and those beneath it only some have a bias")

    def stacked(self, weights: Sequence[Weight]) -> Tensor:
        num_rows = [weight.shape[0] for weight in weights]
        whole = torch.empty(sum(num_rows), *weights[0].shape[1:], dtype=self.dtype, device=self.device)
        for weight, rows in zip(weights, whole.split(num_rows), strict=True):
            self.digests[weight.name] = self.source.fill(weight.name, rows)
        self.weight_bytes += whole.nbytes
        return whole

    def table(self, weight: Weight, *, is_head: bool) -> Tensor | Codes:
        """The head's weight or an embedding; in codes where weights are rounded and it is, or is also, the head's."""
        if self.head_format is None or not is_head:
            return self.tensor(weight)
        return self.codes([weight], self.head_format)

    def codes(self, weights: Sequence[Weight], format: str) -> Codes:
        """Weights beneath one another, rounded piece by piece."""
        num_out = sum(weight.shape[0] for weight in weights)
        made = Codes.empty(format, num_out, weights[0].shape[1], self.device)
        first = 0
        for weight in weights:
            for piece in self.source.pieces(weight.name, weight.shape, self.dtype):
                if not made.fill(first, piece):
                    raise self.source.not_finite(weight.name, self.dtype)
                first += len(piece)
            self.digests[weight.name] = self.source.digest(weight.name)
        self.weight_bytes += made.nbytes
        return made

    def layer(self, arch: Arch, part: LayerParts, window: int | None) -> Layer:
        return Layer(
            attention_norm=self.tensor(part.attention_norm),
            attention=Attention(
                ops=self.ops,
                qkv=self.linear(part.q, part.k, part.v),
                o=self.linear(part.o),
                q_norm=self.optional(part.q_norm),
                k_norm=self.optional(part.k_norm),
                num_heads=arch.num_heads,
                num_kv_heads=arch.num_kv_heads,
                head_dim=arch.head_dim,
                norm_eps=arch.norm_eps,
                window=window,
            ),
            mlp_norm=self.tensor(part.mlp_norm),
            mlp=Mlp(
                ops=self.ops,
                gate_up=self.linear(part.gate, part.up),
                down=self.linear(part.down),
            ),
        )


@torch.no_grad()
def _build(
    arch: Arch,
    source: Source,
    dtype: torch.dtype,
    device: torch.device,
    kernels: str,
    quantization: str | None,
    has_fp8_kv: bool,
    batch_invariant: bool,
) -> Model:
    isa, because = native.choose(kernels, device.type, str(dtype).removeprefix("torch."))
    native.check_quantization(quantization, isa, because)
    if isa is not None and has_fp8_kv:
        raise ConfigError(
            f"has_fp8_kv: the compiled kernels ({isa}) store keys and values as they compute them"
        )
    if isa is not None:
        native.check_batch_invariant(batch_invariant, isa)
        return _Packer(arch, source, dtype, isa, because, quantization).build()
    if not batch_invariant:
        check_variance(
            decisions_of(arch, dtype, device, quantization, has_fp8_kv=has_fp8_kv, batch_invariant=False)
        )
    ops = Ops(arch, dtype, device, has_fp8_kv=has_fp8_kv, batch_invariant=batch_invariant)
    builder = _Builder(source, ops, dtype, device, quantization)
    parts = parts_of(arch)
    embedding = builder.table(parts.embedding, is_head=parts.head is None)
    layers = tuple(
        builder.layer(arch, part, window) for part, window in zip(parts.layers, arch.windows, strict=True)
    )
    final_norm = builder.tensor(parts.final_norm)
    head = ops.linear(embedding if parts.head is None else builder.table(parts.head, is_head=True))
    return TorchModel(
        arch=arch,
        dtype=dtype,
        device=device,
        fingerprint=_fingerprint(arch, dtype, ops.decisions, builder.digests),
        weight_bytes=builder.weight_bytes,
        ops=ops,
        rope=RopeTables(arch.rope, arch.head_dim, device, ops.tables),
        embedding=embedding,
        layers=layers,
        final_norm=final_norm,
        head=head,
        has_fp8_kv=has_fp8_kv,
    )


class _Packer:
    """Packs weights from a source in the order of computation and remembers their digests.

    Quantized weights: those of the layers. The head is int8 in all cases, and so is an embedding that is the same
    tensor; an embedding of its own stays in the model's dtype.
    """

    def __init__(
        self, arch: Arch, source: Source, dtype: torch.dtype, isa: str, because: str, quantization: str | None
    ) -> None:
        self.arch, self.source, self.dtype, self.isa = arch, source, dtype, isa
        plain = str(dtype).removeprefix("torch.")
        self.plain, self.format = plain, quantization or plain
        self.head_format = plain if quantization is None else "int8"
        self.digests: dict[str, bytes] = {}
        self.decisions = [
            Decision("program", isa, (because,)),
            Decision("linear", f"{isa} {self.format}", ()),
        ]
        if quantization is not None:
            self.decisions.append(Decision("head", f"{isa} {self.head_format}", ()))

    def build(self) -> NativeModel:
        arch, parts = self.arch, parts_of(self.arch)
        embedding = self.packed(
            self.plain if parts.head else self.head_format, [Projection(parts.embedding)], num_parts=1
        )
        layers = tuple(
            self.layer(part, window) for part, window in zip(parts.layers, arch.windows, strict=True)
        )
        final_norm = self.tensor(parts.final_norm)
        head = (
            embedding
            if parts.head is None
            else self.packed(self.head_format, [Projection(parts.head)], num_parts=1)
        )
        return NativeModel(
            arch=arch,
            dtype=self.dtype,
            fingerprint=_fingerprint(arch, self.dtype, self.decisions, self.digests),
            isa=self.isa,
            decisions=self.decisions,
            rope=RopeTables(arch.rope, arch.head_dim, torch.device("cpu"), rope.tables),
            embedding=embedding,
            layers=layers,
            final_norm=final_norm,
            head=head,
        )

    def layer(self, part: LayerParts, window: int | None) -> NativeLayer:
        attention_norm = self.tensor(part.attention_norm)
        apart = [part.q, part.k, part.v]
        whole = all(one.weight.shape[0] % PANEL == 0 for one in apart)
        qkv = [apart] if whole else [[one] for one in apart]
        return NativeLayer(
            attention_norm=attention_norm,
            qkv=tuple(self.packed(self.format, group, num_parts=1) for group in qkv),
            o=self.packed(self.format, [part.o], num_parts=1),
            q_norm=None if part.q_norm is None else self.tensor(part.q_norm),
            k_norm=None if part.k_norm is None else self.tensor(part.k_norm),
            mlp_norm=self.tensor(part.mlp_norm),
            gate_up=self.packed(self.format, [part.gate, part.up], num_parts=2),
            down=self.packed(self.format, [part.down], num_parts=1),
            window=window,
        )

    def tensor(self, weight: Weight) -> Tensor:
        target = torch.empty(weight.shape, dtype=self.dtype)
        self.digests[weight.name] = self.source.fill(weight.name, target)
        return target

    def packed(self, format: str, projections: Sequence[Projection], *, num_parts: int) -> Any:
        """Projections under one another, or as parts that take turns."""
        num_out = sum(one.weight.shape[0] for one in projections)
        has_bias = any(one.bias is not None for one in projections)
        num_in = projections[0].weight.shape[1]
        made = native.module().Weight(self.isa, format, num_out, num_in, num_parts, has_bias)
        first = 0
        for index, one in enumerate(projections):
            part = index if num_parts > 1 else 0
            self._fill(made, part, 0 if num_parts > 1 else first, one)
            first += one.weight.shape[0]
        return made

    def _fill(self, made: Any, part: int, first: int, projection: Projection) -> None:
        weight = projection.weight
        row = first
        for piece in self.source.pieces(weight.name, weight.shape, self.dtype):
            if not made.fill(part, row, piece, torch.get_num_threads()):
                raise self.source.not_finite(weight.name, self.dtype)
            row += len(piece)
        self.digests[weight.name] = self.source.digest(weight.name)
        if projection.bias is not None:
            made.fill_bias(part, first, self.tensor(projection.bias))


def _fingerprint(
    arch: Arch, dtype: torch.dtype, decisions: Sequence[Decision], digests: dict[str, bytes]
) -> bytes:
    """See `load`. Tensors are taken by name, so that sharding changes nothing."""
    digest = hashlib.sha256(arch.digest())
    kernels = sorted({(decision.op, decision.impl) for decision in decisions})
    digest.update(f"{dtype} {kernels}".encode())
    for name in sorted(digests):
        digest.update(hashlib.sha256(name.encode()).digest() + digests[name])
    return digest.digest()
