"""A replica whose requests come by themselves: what a rate of arrivals makes of steps that differ.

A closed loop has the same requests at once all the time. Poisson arrivals do not: a long step gathers more of them,
whose prompts make the next one long, and those that have come together decode together, in steps that more prompts
stretch. A request sees the steps in which many decode more often than others, so that its tokens take longer than the
mean step. Replicas that share the arrivals even them out.
"""

from __future__ import annotations

import math

from octavo.errors import ConfigError
from octavo.planner.capacity import Load, Steps
from octavo.planner.steady import Flow, Steady, in_balance

_HALVINGS = 40
_WIDER = 1.1
"""As many more sequences for what one of them adds to a step."""


def arriving(steps: Steps, at_once: float, *, num_replicas: float = 1.0) -> Steady:
    """A balance in which a step finds so many requests on average.

    num_replicas  that share the arrivals, each taking what comes when it has least to do; infinite: arrivals as even
                  as they can be
    Raises ConfigError for a number that is not above 0.
    """
    if not at_once > 0 or not num_replicas >= 1:
        raise ConfigError(
            f"requests at once must be above 0 and replicas at least 1, got {at_once:g} and {num_replicas:g}"
        )
    load, lanes = steps.load, steps.replica.lanes
    sources = num_replicas * lanes
    flow = _flow(load, steps.replica.budget_tokens, at_once / lanes)
    decoding, begun, step = flow.decoding, flow.begun, steps.mean(flow)
    step_s, decode_s = step.mean_s, step.decode_s
    # Who comes finds a step as often as it is long, and others that came in the same one; with several replicas it goes
    # where no prompt is under way, if there is one.
    in_mixed = flow.mixed_share * step.mixed_s / step_s
    long_s = in_mixed * step.mixed_s + (1 - in_mixed) * decode_s
    tpot_s = step_s * (1 - (1 - 1 / sources) * _spacing(flow, step_s, decode_s))
    if math.isfinite(sources):
        crowding, variance = _crowding(steps, flow, step_s, decode_s)
        tpot_s += step_s * crowding / sources
        long_s = max(long_s, step_s + variance / sources / step_s)
    under_way_s = decode_s + (long_s - decode_s) * in_mixed ** (sources - 1)
    together = 1 + begun * long_s / step_s * in_mixed ** (sources - 1)
    own_s = flow.chunks * steps.seconds(decoding, min(load.fresh_tokens * together, flow.room))
    wait_s = under_way_s / 2 + flow.queue * steps.seconds(decoding, flow.room)
    per_s = begun / step_s
    latency_s = wait_s + own_s + flow.further * tpot_s
    return in_balance(
        flow,
        step,
        lanes=lanes,
        at_once=at_once,
        concurrency=per_s * latency_s * lanes,
        wait_s=wait_s,
        own_s=own_s,
        tpot_s=tpot_s,
        requests_per_s=per_s * lanes,
        output_tokens=load.output_tokens,
    )


def _flow(load: Load, budget: int, in_lane: float) -> Flow:
    """As many prompts begun in a step as make so many requests at once, half a step under way when each comes."""
    further = max(load.output_tokens - 1, 0.0)
    low, high = 0.0, in_lane
    for _ in range(_HALVINGS):
        begun = (low + high) / 2
        queue, turn, _, _ = _queue(load, budget, begun)
        if begun * (queue + max(1.0, turn) + 0.5 + further) > in_lane:
            high = begun
        else:
            low = begun
    queue, turn, room, busy = _queue(load, budget, low)
    return Flow.of(
        load.fresh_tokens,
        further=further,
        decoding=low * further,
        room=room,
        begun=low,
        busy=busy,
        queue=queue,
        chunks=max(1.0, turn),
    )


def _queue(load: Load, budget: int, begun: float) -> tuple[float, float, float, float]:
    """Steps that a prompt waits for others' and takes itself, room that a step has for prompts, and the share of it
    that is taken. They wait as for a server that takes as long for each (Pollaczek and Khinchine: M/D/1), forever
    where steps have no room for so many."""
    room = budget - begun * max(load.output_tokens - 1, 0.0)
    if room < 1:
        return math.inf, math.inf, room, 1.0
    turn = load.fresh_tokens / room
    busy = begun * turn
    if busy >= 1:
        return math.inf, turn, room, 1.0
    return turn * busy / 2 / (1 - busy), turn, room, busy


def _spacing(flow: Flow, step_s: float, decode_s: float) -> float:
    """By what part a token takes less than the mean step, where arrivals are even.

    After one of an even stream the next is a whole gap away, after one of a Poisson stream half a gap less than that:
    while a sequence decodes, half a prompt less comes to its replica, and what would come while that is computed, which
    the other replicas have; never more than there are.
    """
    if not flow.decoding > 0:
        return 0.0
    on_prompts = (step_s - decode_s) / step_s
    fewer = 0.5 * flow.decoding / (flow.decoding + 0.5) * (1 + on_prompts)
    return fewer * on_prompts / flow.decoding


def _crowding(steps: Steps, flow: Flow, step_s: float, decode_s: float) -> tuple[float, float]:
    """By what part a token takes longer than the mean step, and the variance of steps; for Poisson arrivals at one.

    A token is seen in a step as often as sequences decode there: by Little's law it takes the mean of their number
    times the step, over the mean number. With p prompts begun in a step and n sequences that decode, deviations from
    the means follow

        L = b n + h p      p' = r L + e      n' = (1 - 1 / f) n + p - g

    for a step of length L: b seconds for each sequence and h for each prompt, r arrivals a second, f tokens of an
    answer, e what Poisson arrivals add, and g those that leave, who came as unevenly f steps before: the variance of
    p over a long time, that of e over (1 - r h)^2. The variances A of n and B of p and their covariance C solve three
    linear equations, and (b A + h C) / (n L) is what is asked for.
    """
    begun, decoding, further = flow.begun, flow.decoding, flow.further
    if not decoding > 0:
        return 0.0, 0.0
    b = max(0.0, steps.seconds(_WIDER * decoding) - decode_s) / ((_WIDER - 1) * decoding)
    h = max(0.0, step_s - decode_s) / begun
    rate = begun / step_s
    by_prompt, by_token, stays = rate * h, rate * b, 1 - 1 / further if further > 1 else 0.0
    left = begun / (1 - by_prompt) ** 2
    # B = (begun + t^2 A + 2 t p C) / (1 - p^2)   of the second equation, put into the other two:
    unit = 1 - by_prompt**2
    of_b, of_a, of_c = begun / unit, by_token**2 / unit, 2 * by_token * by_prompt / unit
    # A (1 - s^2 - of_a) - C (2 s + of_c) = of_b + left
    # C (1 - s p - t - p of_c) - A (s t + p of_a) = p of_b
    a_a, a_c, a_1 = 1 - stays**2 - of_a, 2 * stays + of_c, of_b + left
    c_c, c_a, c_1 = (
        1 - stays * by_prompt - by_token - by_prompt * of_c,
        stays * by_token + by_prompt * of_a,
        by_prompt * of_b,
    )
    whole = a_a * c_c - a_c * c_a
    of_n, of_both = (a_1 * c_c + a_c * c_1) / whole, (a_a * c_1 + c_a * a_1) / whole
    of_p = of_b + of_a * of_n + of_c * of_both
    return (
        (b * of_n + h * of_both) / (decoding * step_s),
        b**2 * of_n + 2 * b * h * of_both + h**2 * of_p,
    )
