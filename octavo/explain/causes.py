"""What went wrong: one detector for each cause, and which of them stand out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from octavo.explain import causes_around, causes_within
from octavo.explain.figures import Figures
from octavo.explain.signs import Finding, Sign

DETECTORS: Mapping[str, Callable[[Figures], Finding]] = {
    "kv-exhausted": causes_within.kv_exhausted,
    "long-prompts": causes_within.long_prompts,
    "reservation": causes_within.reservation,
    "static-batches": causes_within.static_batches,
    "flood": causes_around.flood,
    "few-seats": causes_within.few_seats,
    "cache-thrash": causes_within.cache_thrash,
    "private-prefixes": causes_within.private_prefixes,
    "unbalanced": causes_around.unbalanced,
    "engine-lost": causes_around.engine_lost,
    "decode-behind": causes_around.decode_behind,
    "host-bound": causes_around.host_bound,
    "slow-front": causes_around.slow_front,
    "slow-clients": causes_around.slow_clients,
}
"""By cause. Overload is not among them: it is what remains where none of these explains the waiting."""


def findings(figures: Figures) -> list[Finding]:
    """Every cause that was looked for, the one that explains most first; see `Finding.stands_out`."""
    found = [detector(figures) for detector in DETECTORS.values()] if figures.rows else []
    if figures.rows:
        surest = max((one.confidence for one in found if one.stands_out), default=0.0)
        last = causes_around.overload(figures)
        other = Sign("no other cause", 1 - surest, 0.2, 0.6)
        found.append(replace(last, signs=(*last.signs, other)))
    return sorted(found, key=lambda one: (-one.stands_out, -one.score, one.cause))


def standing_out(found: Sequence[Finding]) -> list[Finding]:
    return [one for one in found if one.stands_out]
