"""Shares of a device's peaks that kernels reach, and what a step costs beside them: measured, fitted or assumed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from octavo.errors import ConfigError

_SHARES = ("weights", "linear", "kv", "attention", "expert_weights", "expert_linear")
_SECONDS = ("step_s", "sequence_s", "product_s", "attention_s", "experts_s")


@dataclass(frozen=True, slots=True, kw_only=True)
class Efficiency:
    """What a step costs whatever is in it, and how near its kernels come to the device's peaks.

    step_s          of a step
    sequence_s      of each sequence in it
    product_s, attention_s, experts_s   of each matrix product, each attention and each layer of routed experts,
                    however little they do
    weights         share of the memory rate that reading weights reaches
    linear          share of the peak that large matrix products reach
    expert_weights, expert_linear   the same of routed experts; None where they are as other matrices
    kv              share of the memory rate that reading keys and values reaches
    attention       share of the peak that attention over prompts reaches
    basis           "measured", "fitted" or "assumed"
    """

    step_s: float
    sequence_s: float
    weights: float
    linear: float
    kv: float
    attention: float
    basis: str
    source: str
    product_s: float = 0.0
    attention_s: float = 0.0
    experts_s: float = 0.0
    expert_weights: float | None = None
    expert_linear: float | None = None

    def __post_init__(self) -> None:
        for name in _SHARES:
            share = getattr(self, name)
            if share is not None and not 0 < share <= 1:
                raise ConfigError(f"efficiency {name} must be above 0 and at most 1, got {share}")
        for name in _SECONDS:
            if getattr(self, name) < 0:
                raise ConfigError(f"efficiency {name} must be at least 0, got {getattr(self, name)}")


_RTX_LOG = (
    "fitted to 300 requests of vLLM 0.19 on RTX PRO 6000, Llama-3.1-8B bf16 (LLMServingSim, bench/examples)"
)
_STEP_S, _SEQUENCE_S = 2.08e-3, 7e-6
_LAUNCHES_OF_THE_FIT_S = 0.93e-3
"""What _STEP_S holds of Llama-3.1-8B's kernels: 129 products of 4 us and 32 attentions of 13 us, as on Hopper."""

_HOST_S = _STEP_S - _LAUNCHES_OF_THE_FIT_S
_TABLES = (
    "AIConfigurator's kernel tables, vLLM 0.24: launch, memory rate and peak fitted to products of n and k from 1024, "
    "to decode attention, and to experts under balanced routing; the step and each sequence as fitted to RTX PRO 6000"
)


def _hopper(
    product_s: float, weights: float, linear: float, kv: float, experts: tuple[float, float, float]
) -> Efficiency:
    return Efficiency(
        step_s=_HOST_S,
        sequence_s=_SEQUENCE_S,
        product_s=product_s,
        attention_s=13e-6,
        experts_s=experts[0],
        weights=weights,
        linear=linear,
        expert_weights=experts[1],
        expert_linear=experts[2],
        kv=kv,
        attention=0.53,
        basis="measured",
        source=_TABLES,
    )


def _elsewhere(product_s: float, linear: float, experts: tuple[float, float, float]) -> Efficiency:
    return Efficiency(
        step_s=_HOST_S,
        sequence_s=_SEQUENCE_S,
        product_s=product_s,
        attention_s=13e-6,
        experts_s=experts[0],
        weights=0.8,
        linear=linear,
        expert_weights=experts[1],
        expert_linear=experts[2],
        kv=0.8,
        attention=0.5,
        basis="assumed",
        source="rounded from Hopper: no kernel of this device and precision was measured here",
    )


ASSUMED = _elsewhere(4e-6, 0.7, (46e-6, 0.85, 0.35))
ASSUMED_NARROW = _elsewhere(7e-6, 0.5, (34e-6, 0.75, 0.2))
"""For products at 8 bits and fewer."""

_MATMUL: Mapping[str, tuple[float, float]] = {
    "a100-80gb-sxm": (271.2 / 312, 271.2 / 312),
    "a100-80gb-pcie": (252.9 / 312, 252.9 / 312),
    "b200-sxm": (1745 / 2250, 3432.5 / 4500),
    "b300-sxm": (1769 / 2250, 3353.3 / 4500),
    "gb200": (1822 / 2500, 3615.6 / 5000),
    "mi300x": (668.4 / 1307, 668.4 / 1307),
    "mi325x": (784.9 / 1307, 784.9 / 1307),
    "mi355x": (1565 / 2500, 1565 / 2500),
}
"""Share of the peak that the fastest of many large products reached, in bf16 and in fp8, the former where the latter
was not measured (ml-engineering, "Maximum Achievable Matmul FLOPS Comparison Table"): power and clocks end it."""

_OF_FASTEST = 0.73
"""What engines' fp8 products reach of the fastest: 0.52 of the peak on H100 and 0.57 on H200 in the kernel tables, of
0.71 and 0.73. In bf16 they reach all of it: 0.82 of 0.80."""

_MEASURED: Mapping[tuple[str, str], Efficiency] = {
    ("h100-sxm", "bf16"): _hopper(3.9e-6, 0.876, 0.819, 0.83, (46e-6, 0.83, 0.34)),
    ("h100-sxm", "fp8"): _hopper(6.8e-6, 0.819, 0.520, 0.83, (34e-6, 0.78, 0.21)),
    ("h200-sxm", "bf16"): _hopper(4.1e-6, 0.844, 0.818, 0.79, (48e-6, 0.86, 0.39)),
    ("h200-sxm", "fp8"): _hopper(7.2e-6, 0.773, 0.569, 0.79, (34e-6, 0.75, 0.23)),
    ("rtx-pro-6000", "bf16"): Efficiency(
        step_s=_STEP_S,
        sequence_s=_SEQUENCE_S,
        weights=0.844 * 1597 / 1792,
        linear=0.614 * 500 / 467.8,
        kv=0.816 * 1597 / 1792,
        attention=0.5,
        basis="fitted",
        source=_RTX_LOG + "; fitted against 1597 GB/s and 500 TFLOP/s, scaled to this table's peaks",
    ),
}


def efficiency(device: str, precision: str) -> Efficiency:
    """Of a device by its name in the table, and the precision its products run at; an assumed one where none was
    measured."""
    found = _MEASURED.get((device, precision))
    if found is not None:
        return found
    is_wide = precision in ("bf16", "fp32")
    assumed = ASSUMED if is_wide else ASSUMED_NARROW
    if device not in _MATMUL:
        return assumed
    wide, narrow = _MATMUL[device]
    return replace(
        assumed,
        linear=wide if is_wide else _OF_FASTEST * narrow,
        source=f"{assumed.source}; products as the fastest that ml-engineering measured on it allow",
    )
