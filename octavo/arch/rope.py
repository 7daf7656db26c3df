"""Rotary positions in numbers, from both spellings that `config.json` has had for them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from octavo.arch.fields import Fields

ROPE_KINDS = ("default", "linear", "dynamic", "yarn", "llama3")
_LONGEST = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Rope:
    """How positions turn into angles; `octavo.models.rope` does the turning.

    theta               base of the wavelengths
    kind                one of ROPE_KINDS
    factor              how many times longer the context has become
    original_positions  context the model was trained on before it was stretched; 0 for kind "default"
    low_freq_factor     llama3: pairs with fewer turns over the original context are interpolated fully
    high_freq_factor    llama3: pairs with more turns are left alone; between the two the forms are blended
    beta_slow           yarn: the same lower border
    beta_fast           yarn: the same upper border
    truncate            yarn: whether the borders snap outwards to whole dimensions
    attention_factor    multiplies cosine and sine, thus the scores by its square; 1 unless kind is yarn
    """

    theta: float
    kind: str = "default"
    factor: float = 1.0
    original_positions: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 1.0
    beta_slow: float = 1.0
    beta_fast: float = 32.0
    truncate: bool = True
    attention_factor: float = 1.0

    def max_positions(self, max_position_embeddings: int) -> int:
        """Longest context the angles are made for.

        "linear" and "dynamic" leave `max_position_embeddings` at what the model was trained on; with "yarn"
        some publishers raise it and some do not; "llama3" has it raised already.
        """
        if self.kind in ("linear", "dynamic", "yarn"):
            return max(max_position_embeddings, int(self.original_positions * self.factor))
        return max_position_embeddings


def parse_rope(fields: Fields, default_theta: float | None) -> Rope:
    """Read `rope_parameters` (new), or `rope_scaling` and `rope_theta` (old), from the fields of a config.

    default_theta  what a missing `rope_theta` means, or None where it may not be missing
    Both spellings side by side must mean the same. Raises LoadError for anything unknown.
    """
    spellings = [fields.inner("rope_parameters"), fields.inner("rope_scaling")]
    ropes = [_parse_one(spelling, fields, default_theta) for spelling in spellings if spelling is not None]
    if not ropes:
        return _parse_one(Fields({}, fields.source), fields, default_theta)
    if ropes[0] != ropes[-1]:
        raise fields.fail("rope_scaling", "the same as rope_parameters says, or only one of the two")
    return ropes[0]


def _parse_one(scaling: Fields, fields: Fields, default_theta: float | None) -> Rope:
    kind = _kind(scaling, fields)
    theta = _theta(scaling, fields, default_theta)
    positions = fields.whole("max_position_embeddings", _LONGEST)
    if kind == "default":
        return Rope(theta=theta)
    if kind in ("linear", "dynamic"):
        factor = scaling.number("factor", low=1.0)
        return Rope(theta=theta, kind=kind, factor=factor, original_positions=positions)
    # beside the rope object it counts more than inside, and a missing one means max_position_embeddings
    inside = scaling.whole("original_max_position_embeddings", _LONGEST, positions)
    original = fields.whole("original_max_position_embeddings", _LONGEST, inside)
    if kind == "yarn":
        return _yarn(scaling, theta, original, max(1.0, positions / original))
    return _llama3(scaling, theta, original)


def _kind(scaling: Fields, fields: Fields) -> str:
    if any(isinstance(value, Mapping) for value in scaling.values.values()):
        raise fields.fail(scaling.prefix.rstrip("."), "one set of values, the same for all layers")
    kind = scaling.values.get("rope_type", scaling.values.get("type", "default"))
    if kind not in ROPE_KINDS:
        raise scaling.fail("rope_type" if "rope_type" in scaling.values else "type", _one_of(ROPE_KINDS))
    if scaling.values.get("type", kind) != kind:
        raise scaling.fail("type", f'"{kind}", as rope_type says')
    if scaling.number("partial_rotary_factor", 1.0, low=0.0) != 1.0:
        raise scaling.fail("partial_rotary_factor", "1: turning a part of the dimensions is not supported")
    if scaling.has("mrope_section"):
        raise scaling.fail("mrope_section", "nothing: positions with more than one axis are not supported")
    return str(kind)


def _one_of(names: tuple[str, ...]) -> str:
    return "one of " + ", ".join(f'"{name}"' for name in names)


def _theta(scaling: Fields, fields: Fields, default: float | None) -> float:
    """Inside the rope object or beside it; two that differ are refused."""
    if not scaling.has("rope_theta"):
        return fields.number("rope_theta", default, low=1.0, is_open=True)
    theta = scaling.number("rope_theta", low=1.0, is_open=True)
    if fields.number("rope_theta", theta, low=1.0, is_open=True) != theta:
        raise fields.fail("rope_theta", f"{theta:g}, as {scaling.prefix}rope_theta says")
    return theta


def _llama3(scaling: Fields, theta: float, original: int) -> Rope:
    """Llama 3.1's blend by wavelength; nothing but `original_max_position_embeddings` may be missing."""
    low = scaling.number("low_freq_factor", low=0.0, is_open=True)
    high = scaling.number("high_freq_factor", low=0.0, is_open=True)
    if high <= low:
        raise scaling.fail("high_freq_factor", f"a number above low_freq_factor, which is {low:g}")
    return Rope(
        theta=theta,
        kind="llama3",
        factor=scaling.number("factor", low=1.0),
        original_positions=original,
        low_freq_factor=low,
        high_freq_factor=high,
    )


def _yarn(scaling: Fields, theta: float, original: int, default_factor: float) -> Rope:
    """YaRN, arXiv 2309.00071: without other orders `attention_factor` is 0.1 ln(factor) + 1.

    A missing factor is the quotient of the two contexts, `default_factor`. `mscale` and `mscale_all_dim`
    count only together and neither being 0; each scales the logarithm, and the quotient of the two is taken.
    """
    factor = scaling.number("factor", default_factor, low=1.0)
    above = scaling.number("mscale", 0.0, low=0.0)
    below = scaling.number("mscale_all_dim", 0.0, low=0.0)
    temperature = 0.1 * math.log(factor) + 1.0
    if above and below:
        temperature = (0.1 * above * math.log(factor) + 1.0) / (0.1 * below * math.log(factor) + 1.0)
    slow = scaling.number("beta_slow", 1.0, low=0.0, is_open=True)
    fast = scaling.number("beta_fast", 32.0, low=0.0, is_open=True)
    if fast < slow:
        raise scaling.fail("beta_fast", f"a number of at least beta_slow, which is {slow:g}")
    return Rope(
        theta=theta,
        kind="yarn",
        factor=factor,
        original_positions=original,
        beta_slow=slow,
        beta_fast=fast,
        truncate=scaling.flag("truncate", True),
        attention_factor=scaling.number("attention_factor", temperature, low=0.0, is_open=True),
    )
