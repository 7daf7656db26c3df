"""Bytes of weights in every storage format, scales and zero points included, and which weights stay as they are."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from octavo.arch.tensors import Matrix, Tensor
from octavo.errors import ConfigError

LINEAR_PARTS = frozenset({"qkv", "output", "state", "mlp", "experts", "shared"})
"""Parts whose matrices are quantized where a format quantizes at all. Embedding, head, router, norms, biases and small
convolutions stay in the type of activations, as published checkpoints leave them."""

EXPERT_PARTS = frozenset({"experts"})


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightFormat:
    """How the elements of a matrix are stored.

    bits           of one element
    block          (inputs, outputs) that share a scale; 0 stands for all of them, and (0, 0) for one in all
    scale_bytes    of each scale, 0 for none
    zero_bits      of a zero point beside each scale
    matrix_bytes   once per matrix, such as a second scale over all
    multiple       inputs are padded to a multiple of this, as a kernel's layout asks
    compute        precision of the products on hardware that has it, a key of `Device.flop_per_s`
    parts          whose matrices it applies to
    source         whose layout this is
    """

    name: str
    bits: float
    block: tuple[int, int] = (0, 0)
    scale_bytes: int = 0
    zero_bits: int = 0
    matrix_bytes: int = 0
    multiple: int = 1
    compute: str = "bf16"
    parts: frozenset[str] = LINEAR_PARTS
    source: str = ""

    def scales(self, inputs: int, outputs: int) -> int:
        """How many scales one matrix has."""
        along_in = 1 if self.block[0] == 0 else -(-inputs // self.block[0])
        along_out = 1 if self.block[1] == 0 else -(-outputs // self.block[1])
        return along_in * along_out * (self.scale_bytes > 0)

    def bytes_of(self, inputs: int, outputs: int) -> float:
        """One matrix without its bias. Zero points are packed, so that some formats come to half bytes."""
        inputs = -(-inputs // self.multiple) * self.multiple
        scales = self.scales(inputs, outputs)
        return (
            inputs * outputs * self.bits / 8
            + scales * (self.scale_bytes + self.zero_bits / 8)
            + self.matrix_bytes
        )

    def bits_per_element(self, inputs: int = 4096, outputs: int = 4096) -> float:
        return 8 * self.bytes_of(inputs, outputs) / (inputs * outputs)

    def applies_to(self, tensor: Tensor) -> bool:
        return isinstance(tensor, Matrix) and tensor.part in self.parts and self.bits < 16


def _grouped(name: str, group: int, zero_bits: int, source: str) -> WeightFormat:
    return WeightFormat(
        name=name, bits=4, block=(group, 1), scale_bytes=2, zero_bits=zero_bits, source=source
    )


_PACKED = "compressed-tensors, pack-quantized: symmetric, a float16 scale for each group"
_FORMATS = (
    WeightFormat(name="fp32", bits=32, compute="fp32", source="IEEE 754"),
    WeightFormat(name="bf16", bits=16, source="bfloat16"),
    WeightFormat(name="fp16", bits=16, source="IEEE 754"),
    WeightFormat(
        name="fp8",
        bits=8,
        block=(0, 1),
        scale_bytes=4,
        compute="fp8",
        source="compressed-tensors, float-quantized: a float32 scale for each output channel",
    ),
    WeightFormat(
        name="fp8-block",
        bits=8,
        block=(128, 128),
        scale_bytes=4,
        compute="fp8",
        source="DeepSeek-V3 README_WEIGHTS.md: weight_scale_inv, float32, blocks of 128 x 128",
    ),
    WeightFormat(
        name="int8",
        bits=8,
        block=(0, 1),
        scale_bytes=4,
        compute="int8",
        source="compressed-tensors, int-quantized: a float32 scale for each output channel",
    ),
    *(_grouped(f"int4-g{group}", group, 0, _PACKED) for group in (32, 64, 128)),
    *(
        _grouped(f"awq-g{group}", group, 4, "AutoAWQ GEMM: float16 scales and packed 4-bit zero points")
        for group in (32, 64, 128)
    ),
    *(
        _grouped(f"gptq-g{group}", group, 4, "AutoGPTQ: float16 scales and packed 4-bit zero points")
        for group in (32, 64, 128)
    ),
    WeightFormat(
        name="nvfp4",
        bits=4,
        block=(16, 1),
        scale_bytes=1,
        matrix_bytes=4,
        compute="fp4",
        source="NVIDIA ModelOpt: an FP8 E4M3 scale for each 16 elements, a float32 one for each matrix",
    ),
    WeightFormat(
        name="mxfp4",
        bits=4,
        block=(32, 1),
        scale_bytes=1,
        compute="fp4",
        parts=EXPERT_PARTS,
        source="OCP Microscaling Formats 1.0: an E8M0 scale for each 32 elements; experts only, as gpt-oss has it",
    ),
    WeightFormat(
        name="mxfp4-hopper",
        bits=4,
        block=(32, 1),
        scale_bytes=1,
        multiple=256,
        compute="bf16",
        parts=EXPERT_PARTS,
        source="mxfp4 as it lies in memory on H100: padding inferred from what vLLM printed for gpt-oss-20b and 120b",
    ),
)

FORMATS = {one.name: one for one in _FORMATS}


def weight_format(name: str) -> WeightFormat:
    """Raises ConfigError that lists what there is."""
    if name not in FORMATS:
        raise ConfigError(
            f"weights are stored as {name!r}, which is not known; known are {', '.join(FORMATS)}"
        )
    return FORMATS[name]


def tensor_bytes(tensor: Tensor, form: WeightFormat, rest_bytes: float) -> float:
    """One tensor, all its copies; what the format leaves alone takes `rest_bytes` an element."""
    if not isinstance(tensor, Matrix):
        return tensor.num_elements() * rest_bytes
    biases = tensor.count * tensor.bias * tensor.outputs * rest_bytes
    if form.applies_to(tensor):
        return tensor.count * form.bytes_of(tensor.inputs, tensor.outputs) + biases
    return tensor.num_weights() * rest_bytes + biases


def rest_bytes(form: WeightFormat) -> float:
    """Bytes of an element that the format leaves alone: the type of activations, or the format where it is wide."""
    return form.bits / 8 if form.bits >= 16 else 2.0


def weight_bytes(tensors: Iterable[tuple[Tensor, int]], form: WeightFormat) -> int:
    """Of (tensor, how many layers hold one like it), rounded up once."""
    rest = rest_bytes(form)
    total = sum(count * tensor_bytes(tensor, form, rest) for tensor, count in tensors)
    return int(-(-total // 1))


def untouched(tensors: Iterable[tuple[Tensor, int]], form: WeightFormat) -> dict[str, int]:
    """Part to weights that the format leaves alone."""
    found: dict[str, int] = {}
    for tensor, count in tensors:
        if not form.applies_to(tensor):
            found[tensor.part] = found.get(tensor.part, 0) + count * tensor.num_elements()
    return found


def useful_formats(tensors: Iterable[tuple[Tensor, int]]) -> dict[str, WeightFormat]:
    """Formats that change something here: those for experts only where there are experts."""
    held = [tensor for tensor, _ in tensors]
    return {
        name: form
        for name, form in FORMATS.items()
        if form.bits >= 16 or any(form.applies_to(tensor) for tensor in held)
    }
