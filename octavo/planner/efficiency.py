"""Shares of a device's peaks that kernels reach, and what a step costs beside them: measured, fitted or assumed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from octavo.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Efficiency:
    """Five constants of a step, and a sixth where prompts' attention is counted.

    step_s      of a step, whatever is in it
    sequence_s  of each sequence in it
    weights     share of the memory rate that reading weights reaches
    linear      share of the peak that large matrix products reach
    kv          share of the memory rate that reading keys and values reaches
    attention   share of the peak that attention over prompts reaches
    basis       "measured", "fitted" or "assumed"
    """

    step_s: float
    sequence_s: float
    weights: float
    linear: float
    kv: float
    attention: float
    basis: str
    source: str

    def __post_init__(self) -> None:
        for name in ("weights", "linear", "kv", "attention"):
            if not 0 < getattr(self, name) <= 1:
                raise ConfigError(
                    f"efficiency {name} must be above 0 and at most 1, got {getattr(self, name)}"
                )
        if self.step_s < 0 or self.sequence_s < 0:
            raise ConfigError("efficiency step_s and sequence_s must be at least 0")


_RTX_LOG = (
    "fitted to 300 requests of vLLM 0.19 on RTX PRO 6000, Llama-3.1-8B bf16 (LLMServingSim, bench/examples)"
)
_STEP_S, _SEQUENCE_S = 2.08e-3, 7e-6
_TABLES = (
    "medians of AIConfigurator's kernel tables, vLLM 0.24, n and k of at least 4096; "
    "the step and each sequence as fitted to RTX PRO 6000"
)


def _hopper(weights: float, linear: float, kv: float) -> Efficiency:
    return Efficiency(
        step_s=_STEP_S,
        sequence_s=_SEQUENCE_S,
        weights=weights,
        linear=linear,
        kv=kv,
        attention=0.54,
        basis="measured",
        source=_TABLES,
    )


ASSUMED = Efficiency(
    step_s=_STEP_S,
    sequence_s=_SEQUENCE_S,
    weights=0.85,
    linear=0.6,
    kv=0.8,
    attention=0.5,
    basis="assumed",
    source="round numbers: no kernel of this device and precision was measured here",
)

_MEASURED: Mapping[tuple[str, str], Efficiency] = {
    ("h100-sxm", "bf16"): _hopper(0.83, 0.82, 0.87),
    ("h100-sxm", "fp8"): _hopper(0.69, 0.57, 0.87),
    ("h200-sxm", "bf16"): _hopper(0.78, 0.81, 0.83),
    ("h200-sxm", "fp8"): _hopper(0.61, 0.63, 0.83),
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
    """Of a device by its name in the table, and the precision its products run at; ASSUMED where none was measured."""
    return _MEASURED.get((device, precision), ASSUMED)
