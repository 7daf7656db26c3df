"""Drives an engine through steps of many sizes, so that its recorder has something to say about each.

The engine is asked as anybody asks it: requests of chosen lengths, sent so that its scheduler plans steps of the wanted
widths, contexts and chunks. What the steps were, and what they took, is in the trail.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from octavo.core.limits import Limits
from octavo.core.sequence import SamplingParams
from octavo.engine.loop import Engine
from octavo.engine.outputs import RequestEnded
from octavo.errors import Bug, ConfigError

DECODE_STEPS = 12
"""Steps of one width in a trial."""
WIDTHS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
CONTEXTS = (32, 256, 1024, 4096)
CHUNKS = (2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)
MIXED_CHUNKS = (8, 64, 256)
MIXED_WIDTHS = (2, 8, 32)
MOST_TOKENS = 8192
"""Prompt tokens of one trial, together: where memory or patience would not do for more."""
REPEATS = 3
"""Of every trial, where the budget allows; what was never tried is guessed worse than what was tried once."""
WARM_TOKENS = 128


@dataclass(frozen=True, slots=True)
class Ask:
    """One request of a trial: it comes when so many steps of the trial have been made."""

    prompt_tokens: int
    output_tokens: int
    after_steps: int = 0


@dataclass(frozen=True, slots=True)
class Trial:
    """Requests that make the scheduler plan the steps that are wanted."""

    name: str
    asks: tuple[Ask, ...]


def trials(limits: Limits) -> list[Trial]:
    """Decodes at widths and contexts, chunks of many sizes and starts, and both at once, within the limits.

    Coarse ones come first, so that a plan that is cut short still spans all.
    """
    longest = limits.max_model_len - DECODE_STEPS - 1
    room = (limits.num_blocks - 1) * limits.block_tokens
    widths = [width for width in WIDTHS if width <= limits.max_num_seqs]
    found = [
        Trial(f"{width} decode at {context}", (Ask(context, DECODE_STEPS + 1),) * width)
        for context in CONTEXTS
        for width in widths
        if context <= longest
        and width * context <= max(MOST_TOKENS, context)
        and width * (context + DECODE_STEPS + 1 + limits.block_tokens) <= room
    ]
    chunks = [size for size in CHUNKS if size <= min(longest, limits.max_num_batched_tokens)]
    found += [Trial(f"chunk of {size}", (Ask(size, 1),)) for size in chunks]
    found += [
        Trial(f"prompt of {size}", (Ask(size, 1),))
        for size in (longest // 4, longest // 2, longest)
        if chunks and chunks[-1] < size <= min(MOST_TOKENS, room - limits.block_tokens)
    ]
    found += [
        Trial(
            f"{width} decode and a chunk of {size}",
            (*(Ask(32, 2 * DECODE_STEPS),) * width, Ask(size, 1, after_steps=4), Ask(size, 1, after_steps=9)),
        )
        for width in MIXED_WIDTHS
        for size in MIXED_CHUNKS
        if width + 1 <= limits.max_num_seqs
        and max(size, 32 + 2 * DECODE_STEPS) < longest
        and width * (32 + 2 * DECODE_STEPS + limits.block_tokens) + 2 * size + 32 <= room
    ]
    if not found:
        raise ConfigError(
            f"an engine with {limits.num_blocks} blocks and a longest sequence of {limits.max_model_len} tokens is too"
            " small to be calibrated; give it a larger --num-kv-blocks or --max-model-len"
        )
    return [*found[::2], *found[1::2]]


def drive(
    engine: Engine,
    vocab_size: int,
    planned: Sequence[Trial],
    *,
    budget_s: float,
    clock: Callable[[], float] = time.monotonic,
    seed: int = 0,
    on_trial: Callable[[], None] | None = None,
) -> int:
    """Make all trials again and again until the time is used up, at least as often as `affordable`. Returns how often.

    budget_s  when it is over, no further round begins; trials that leave no time for a round of all are not made
    on_trial  called after each trial

    Prompts are new in every trial, so that no cache has them. Raises Bug when a request is not answered in full.
    """
    draw = random.Random(f"octavo calibrate {seed}")
    names = _names()
    planned, repeats = affordable(planned, _pace(engine, vocab_size, draw, names, clock), budget_s)
    began_s, rounds, longest_s = clock(), 0, 0.0
    while rounds < repeats or clock() - began_s + longest_s <= budget_s:
        round_began_s = clock()
        for trial in planned:
            _run(engine, trial, vocab_size, draw, names)
            if on_trial is not None:
                on_trial()
        rounds += 1
        longest_s = max(longest_s, clock() - round_began_s)
        if rounds >= 1000:
            break
    return rounds


@dataclass(frozen=True, slots=True)
class Pace:
    """About what a step takes, and what a prompt token adds."""

    step_s: float
    token_s: float

    def cost_s(self, trial: Trial) -> float:
        steps = max(ask.output_tokens for ask in trial.asks)
        outputs = sum(ask.output_tokens for ask in trial.asks)
        prompts = sum(ask.prompt_tokens for ask in trial.asks)
        return steps * self.step_s + (prompts + outputs) * self.token_s


def affordable(planned: Sequence[Trial], pace: Pace, budget_s: float) -> tuple[list[Trial], int]:
    """Trials that can be made within the budget, and how often, REPEATS times at most.

    Where one round of all is too much, the dearest go first, and one always stays.
    """
    total_s = sum(map(pace.cost_s, planned))
    repeats = min(REPEATS, int(budget_s / total_s)) if total_s > 0 else REPEATS
    if repeats:
        return list(planned), repeats
    gone = set()
    for trial in sorted(planned, key=pace.cost_s, reverse=True)[:-1]:
        if total_s <= budget_s:
            break
        gone.add(trial.name)
        total_s -= pace.cost_s(trial)
    return [trial for trial in planned if trial.name not in gone], 1


def _pace(
    engine: Engine,
    vocab_size: int,
    draw: random.Random,
    names: Iterator[str],
    clock: Callable[[], float],
) -> Pace:
    """After two requests that warm up: one that decodes, and one that reads as many tokens as a step holds."""
    limits = engine.scheduler.limits
    size = min(limits.max_num_batched_tokens, limits.max_model_len - 2, WARM_TOKENS)
    decodes, reads = Trial("pace", (Ask(1, DECODE_STEPS),)), Trial("pace", (Ask(size, 1),))
    took: list[float] = []
    for trial in (decodes, reads, decodes, reads):
        began_s = clock()
        _run(engine, trial, vocab_size, draw, names)
        took.append(clock() - began_s)
    step_s = took[2] / DECODE_STEPS
    return Pace(step_s, max(took[3] - step_s, 0.0) / size)


def _names() -> Iterator[str]:
    number = 0
    while True:
        yield f"calibrate-{number}"
        number += 1


def _run(engine: Engine, trial: Trial, vocab_size: int, draw: random.Random, names: Iterator[str]) -> None:
    coming = sorted(trial.asks, key=lambda ask: ask.after_steps)
    before, wanted = engine.counts().num_steps, dict[str, int]()
    while coming or engine.is_busy:
        made = engine.counts().num_steps - before
        while coming and (coming[0].after_steps <= made or not engine.is_busy):
            ask, request_id = coming.pop(0), next(names)
            wanted[request_id] = ask.output_tokens
            engine.add(
                [draw.randrange(vocab_size) for _ in range(ask.prompt_tokens)],
                SamplingParams(temperature=0.0, max_tokens=ask.output_tokens, ignore_eos=True),
                request_id=request_id,
            )
        for update in engine.step():
            if isinstance(update, RequestEnded):
                got = len(update.output.outputs[0].token_ids)
                if got != wanted.pop(update.request_id):
                    raise Bug(
                        f"{trial.name}: a request ended {update.output.outputs[0].finish_reason!r}, {got} tokens"
                    )
