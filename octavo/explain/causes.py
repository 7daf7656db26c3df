"""What went wrong: one detector for each cause, and which of them stand out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from octavo.explain import causes_around, causes_within
from octavo.explain.figures import Figures
from octavo.explain.signs import LEAST_SURE, Finding, Sign

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

RIVAL = 0.5
"""A cause that explains so much of what overload does is taken before it."""


def findings(figures: Figures) -> list[Finding]:
    """Every cause that was looked for, the one that explains most first; see `Finding.stands_out`."""
    if not figures.rows:
        return []
    found = [detector(figures) for detector in DETECTORS.values()]
    last = causes_around.overload(figures)
    rivals = [one for one in found if one.stands_out and one.explains >= RIVAL * last.explains]
    surest = max((one.confidence for one in rivals), default=0.0)
    alone = Sign("certainty that nothing else explains it", 1 - surest, LEAST_SURE, 0.8)
    found.append(replace(last, signs=(*last.signs, alone)))
    return sorted(found, key=lambda one: (-one.stands_out, -one.score, one.cause))


def standing_out(found: Sequence[Finding]) -> list[Finding]:
    return [one for one in found if one.stands_out]
