"""A replica in balance: what flows through its steps, how long they are on average, and what requests see of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """One lane, in steps instead of seconds.

    further      tokens of a request after its first
    decoding     sequences past their prompt, as a step finds them
    room         tokens of prompts that a step has room for; `begun` prompts are begun in it
    busy         share of the steps' room that prompts take
    mixed_share  of the steps that have prompts in them, `fresh` tokens each
    queue        steps that a prompt waits for others'; `chunks` it takes itself
    """

    further: float
    decoding: float
    room: float
    begun: float
    busy: float
    mixed_share: float
    fresh: float
    queue: float
    chunks: float

    @classmethod
    def of(
        cls,
        fresh_tokens: float,
        *,
        further: float,
        decoding: float,
        room: float,
        begun: float,
        busy: float,
        queue: float,
        chunks: float,
    ) -> Flow:
        """Of prompts with so many tokens to compute each."""
        share = max(1 - math.exp(-begun), busy)
        return cls(
            further=further,
            decoding=decoding,
            room=room,
            begun=begun,
            busy=busy,
            mixed_share=share,
            fresh=min(begun * fresh_tokens / share, room),
            queue=queue,
            chunks=chunks,
        )


@dataclass(frozen=True, slots=True)
class MeanStep:
    """A step without prompts takes `decode_s`, one with them `mixed_s`; `parts` of the mean, by what it waits for."""

    decode_s: float
    mixed_s: float
    parts: dict[str, float]

    @classmethod
    def of(cls, plain: Mapping[str, float], mixed: Mapping[str, float], mixed_share: float) -> MeanStep:
        parts = {name: (1 - mixed_share) * plain[name] + mixed_share * mixed[name] for name in mixed}
        return cls(sum(plain.values()), sum(mixed.values()), parts)

    @property
    def mean_s(self) -> float:
        return sum(self.parts.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Steady:
    """A replica in balance.

    at_once          requests in it as a step finds them; `concurrency` on average over time, which is the same of a
                     closed loop
    decoding         of them, past their prompt, as a step finds them
    ttft_s           from a request's arrival at the scheduler to its first token; no front end
    wait_s           of that, before its first chunk is begun
    tpot_s           between tokens of a request, other requests' prompts included
    decode_s         a step without prompts; `mixed_s` one with, in `mixed_share` of the steps
    busy             share of the steps' room for prompts that is taken
    requests_per_s   of the whole replica
    prompt_share     of the time, spent on prompts
    parts            seconds of the average step by what it waits for
    """

    at_once: float
    concurrency: float
    decoding: float
    ttft_s: float
    wait_s: float
    tpot_s: float
    decode_s: float
    mixed_s: float
    mixed_share: float
    busy: float
    requests_per_s: float
    output_per_s: float
    prompt_share: float
    parts: dict[str, float]

    @property
    def latency_s(self) -> float:
        """Of a request; concurrency / requests_per_s, by Little's law."""
        return self.concurrency / self.requests_per_s

    @property
    def bound(self) -> str:
        """What most of the time is spent on: prompts or decoding, and there waiting for what."""
        what = max(self.parts, key=lambda name: self.parts[name])
        return f"{'prompts' if self.prompt_share > 0.5 else 'decoding'}, by {_SAYS[what]}"


_SAYS = {
    "host": "the program around the kernels",
    "launches": "launches of kernels",
    "weights": "reading weights",
    "arithmetic": "arithmetic",
    "activations": "what lies between products",
    "kv": "reading keys and values",
    "links": "communication",
}


def in_balance(
    flow: Flow,
    step: MeanStep,
    *,
    lanes: int,
    at_once: float,
    concurrency: float,
    wait_s: float,
    own_s: float,
    tpot_s: float,
    requests_per_s: float,
    output_tokens: float,
) -> Steady:
    """What a flow and its steps come to. `own_s` are the steps that a request's own prompt takes."""
    return Steady(
        at_once=at_once,
        concurrency=concurrency,
        decoding=flow.decoding * lanes,
        ttft_s=wait_s + own_s,
        wait_s=wait_s,
        tpot_s=tpot_s,
        decode_s=step.decode_s,
        mixed_s=step.mixed_s,
        mixed_share=flow.mixed_share,
        busy=flow.busy,
        requests_per_s=requests_per_s,
        output_per_s=requests_per_s * output_tokens,
        prompt_share=flow.mixed_share * (step.mixed_s - step.decode_s * (flow.further > 0)) / step.mean_s,
        parts=step.parts,
    )
