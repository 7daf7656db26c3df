"""A recording as a whole, as one document: what it holds, what happened, what would have helped."""

from __future__ import annotations

import math
from typing import Any

from octavo.explain.causes import findings, standing_out
from octavo.explain.figures import Figures
from octavo.explain.signs import Finding
from octavo.explain.story import Story
from octavo.explain.whatif import MAX_REQUESTS, WhatIf, what_if

NUM_SLOWEST = 10


def verdict(
    story: Story,
    *,
    from_s: float = 0.0,
    to_s: float = float("inf"),
    simulates: bool = True,
    max_requests: int = MAX_REQUESTS,
    target_p99_s: float | None = None,
) -> dict[str, Any]:
    """JSON-ready. `what_if` is None where nothing stands out, or nothing is to be simulated.

    Raises LoadError where there is something to simulate, and the recording holds too little for it.
    """
    figures = Figures(story, from_s, to_s)
    found = findings(figures)
    causes = standing_out(found)
    document = story.overview(NUM_SLOWEST, figures.rows)
    document["findings"] = [_finding(one) for one in causes]
    document["also_looked_for"] = [_finding(one) for one in found if not one.stands_out]
    document["cause"] = causes[0].cause if causes else None
    document["what_if"] = None
    if causes and simulates:
        result = what_if(figures, causes[0], max_requests=max_requests, target_p99_s=target_p99_s)
        document["what_if"] = _what_if(result)
    return document


def _finding(one: Finding) -> dict[str, Any]:
    return {
        "cause": one.cause,
        "says": one.says,
        "confidence": one.confidence,
        "share": one.share,
        "share_of_slowest_tenth": one.tail_share,
        "signs": [
            {
                "says": sign.says,
                "value": sign.value,
                "nothing_at": sign.nothing,
                "plain_at": sign.plain,
                "strength": sign.strength,
            }
            for sign in one.signs
        ],
        "evidence": list(one.evidence),
    }


def _what_if(result: WhatIf) -> dict[str, Any]:
    advice = result.advice
    return {
        "about": result.finding.cause,
        "metric": result.finding.metric,
        "requests": result.num_requests,
        "requests_recorded": result.num_recorded,
        "error_of_step_model": result.fit_error,
        "recorded": result.recorded,
        "simulated": result.base.spread,
        "simulated_tokens_per_s": result.base.tokens_per_s,
        "simulated_others": result.base.others,
        "error": result.error,
        "changes": [
            {
                "change": one.change.says,
                "command": one.change.command,
                "gain": one.gain,
                "tokens_per_s": one.played.tokens_per_s,
                **one.played.spread,
                **({} if one.played.others is None else {"others": one.played.others}),
            }
            for one in result.tried
        ],
        "advice": None
        if advice is None
        else {
            "says": advice.says,
            "command": advice.command,
            "p99_before_s": advice.before_p99_s if math.isfinite(advice.before_p99_s) else None,
            "p99_after_s": advice.after_p99_s,
        },
    }
