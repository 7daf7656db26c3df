"""Prompts on devices of their own: what each pool does, in which ratio they are needed, and whether it pays.

Together, each step with prompts in it delays every sequence's next token; apart, a replica of the first pool computes
prompts alone and hands keys and values over, and one of the second does nothing but decode (Zhong et al. 2024,
DistServe, arXiv 2401.09670).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from octavo.planner import comm
from octavo.planner.capacity import Load, Replica, Steps, room_for
from octavo.planner.slo import Slo

MOST_BUSY = 0.9
"""Share of the time that the first pool computes prompts at most: above it, waits grow without bound. An assumption."""

_HALVINGS = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Two pools of alike replicas.

    prompt_requests_per_s   of one replica of the first pool; decode_requests_per_s of the second
    hand_over_s             of one prompt's keys and values, from each rank to its counterpart
    ratio                   replicas that decode for each that computes prompts
    decoding                sequences in a replica of the second pool
    ttft_s                  without a front end; the second token's wait for the hand-over is in it
    """

    prompt_requests_per_s: float
    decode_requests_per_s: float
    hand_over_s: float
    ratio: float
    decoding: float
    ttft_s: float
    tpot_s: float

    def replicas(self, requests_per_s: float) -> tuple[int, int]:
        """Whole replicas of each pool for a rate."""
        return (
            math.ceil(requests_per_s / self.prompt_requests_per_s - 1e-9),
            math.ceil(requests_per_s / self.decode_requests_per_s - 1e-9),
        )


def split(replica: Replica, load: Load, slo: Slo, front_end_s: float) -> Split | None:
    """The fastest pools that keep the limits, or None where none do or nothing is decoded."""
    further = load.output_tokens - 1
    if further < 1:
        return None
    steps = Steps(replica, load)
    hand_over_s = _hand_over_s(replica, load)
    fed = _prompts(steps, slo, front_end_s + hand_over_s)
    decoding = _decoding(steps, slo)
    if fed is None or decoding is None:
        return None
    busy, own_s = fed
    rate = busy * replica.lanes / own_s
    tpot_s = steps.seconds(decoding / replica.lanes)
    decodes = decoding / (further * tpot_s)
    return Split(
        prompt_requests_per_s=rate,
        decode_requests_per_s=decodes,
        hand_over_s=hand_over_s,
        ratio=rate / decodes,
        decoding=decoding,
        ttft_s=own_s * (1 + busy / (2 * (1 - busy))) + hand_over_s,
        tpot_s=tpot_s,
    )


def _hand_over_s(replica: Replica, load: Load) -> float:
    sent = comm.hand_over(replica.shape, round(load.prompt_tokens), replica.kv)
    share = sent.sent_bytes / replica.parallel.tensor
    return replica.device.network().seconds(share, 1)


def _prompts(steps: Steps, slo: Slo, beside_s: float) -> tuple[float, float] | None:
    """How busy a prompt replica may be, and seconds of a prompt; the wait is that of M/D/1."""
    budget, fresh = steps.replica.budget_tokens, steps.load.fresh_tokens
    own_s = steps.seconds(0.0, min(fresh, budget)) * max(1.0, fresh / budget)
    if slo.ttft_s is None:
        return MOST_BUSY, own_s
    spare = (slo.ttft_s - beside_s - own_s) / own_s
    if spare <= 0:
        return None
    return min(MOST_BUSY, 2 * spare / (1 + 2 * spare)), own_s


def _decoding(steps: Steps, slo: Slo) -> float | None:
    """Most sequences that room and the limit allow."""
    lanes, most = steps.replica.lanes, room_for(steps.replica, steps.load)
    if most < 1:
        return None
    if slo.tpot_s is None or steps.seconds(most / lanes) <= slo.tpot_s:
        return most
    low, high = 1.0, most
    if steps.seconds(low / lanes) > slo.tpot_s:
        return None
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if steps.seconds(middle / lanes) <= slo.tpot_s:
            low = middle
        else:
            high = middle
    return low
