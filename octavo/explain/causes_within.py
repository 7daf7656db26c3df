"""Causes in an engine's memory, cache and steps."""

from __future__ import annotations

from octavo.core.admit import BLOCKS_PROMISED, NO_BLOCKS, NO_SEAT
from octavo.explain import ledger as lines
from octavo.explain.figures import Figures
from octavo.explain.ledger import Line
from octavo.explain.signs import Finding, Sign, of_time, percent, share_sign
from octavo.explain.trail import Life

LONG = 4.0
"""A prompt so many times the median is a long one."""
LONG_TOKENS = 1024
"""Shorter ones stretch no step that anybody would notice."""

COMPUTING_PROMPTS = (lines.PROMPT, lines.OTHER_PROMPTS, lines.WAITING, lines.PASSED)


def is_for_blocks(line: Line) -> bool:
    is_waiting = line.cause == lines.WAITING
    return is_waiting and (
        NO_BLOCKS in line.detail or BLOCKS_PROMISED in line.detail or "it had lost its memory" in line.detail
    )


def kv_exhausted(figures: Figures) -> Finding:
    shares = figures.share(lambda line: is_for_blocks(line) or line.cause == lines.AGAIN)
    again = figures.share(lambda line: line.cause == lines.AGAIN)
    losses = sum(len(life.lost) for life in figures.lives)
    free, stored = figures.free_share(NO_BLOCKS), figures.stored_share
    storm = "one request after the other lost its memory and had to wait for it again" if losses else ""
    return Finding(
        cause="kv-exhausted",
        says="the KV memory ran out" + (f": {storm}" if storm else ": requests waited for free blocks"),
        share=shares[0],
        tail_share=shares[1],
        signs=(
            share_sign(shares),
            Sign("blocks in use while somebody waits for some", 1 - free, 0.7, 0.9),
            Sign("of what is held, holds tokens", stored, 0.5, 0.7),
        ),
        evidence=(
            f"waiting for blocks, and computing again what was lost: {of_time(shares)}",
            f"{losses} times a request lost its memory; {of_time(again)} went into computing it again",
            f"{percent(1 - free)} of the blocks were in use while the first in the queue waited for some, and"
            f" {percent(stored)} of what was held held tokens",
        ),
        bears_on=("blocks", "seats-down", "replicas"),
    )


def long_prompts(figures: Figures) -> Finding:
    least = max(LONG * figures.median_prompt, LONG_TOKENS)

    def is_behind_long(life: Life, line: Line) -> bool:
        tokens = line.who.split(" ", 1)[0]
        is_long = tokens.isdigit() and int(tokens) >= least
        return line.cause == lines.OTHER_PROMPTS and is_long and life.prompt_tokens < least

    shares = figures.share_by(is_behind_long)
    count = len(figures.lives)
    num_long = sum(life.prompt_tokens >= least for life in figures.lives)
    longest = max((life.prompt_tokens for life in figures.lives), default=0)
    return Finding(
        cause="long-prompts",
        says="few long prompts stretched the steps in which everybody else decodes",
        share=shares[0],
        tail_share=shares[1],
        signs=(
            share_sign(shares, 0.03, 0.15),
            Sign("a step at the 99th percentile, in medians", figures.stretch, 1.5, 4.0),
            Sign("prompts that are long", num_long / (count or 1), 0.5, 0.25),
        ),
        evidence=(
            f"steps stretched by the prompts of {num_long} of {count} requests, of up to {longest} tokens, where the"
            f" median is {figures.median_prompt:.0f}: {of_time(shares)}",
            f"the 99th percentile of steps in which sequences decode takes {figures.stretch:.1f} times the median",
        ),
        bears_on=("mixed", "chunk"),
        metric="gap_s",
    )


def reservation(figures: Figures) -> Finding:
    shares, stored = figures.share(is_for_blocks), figures.stored_share
    return Finding(
        cause="reservation",
        says="memory was reserved for tokens that never came, and requests waited for it",
        share=shares[0],
        tail_share=shares[1],
        signs=(
            share_sign(shares),
            Sign("of what is held, holds nothing", 1 - stored, 0.3, 0.5),
        ),
        evidence=(
            f"waiting for blocks: {of_time(shares)}",
            f"{percent(stored)} of the memory that sequences held held tokens; with paging it is above 96 % (Kwon et"
            " al. 2023, figure 2)",
        ),
        bears_on=("paged",),
    )


def static_batches(figures: Figures) -> Finding:
    shares = figures.waiting()
    padding = figures.padding_share
    return Finding(
        cause="static-batches",
        says="batches ran as a whole: nobody joined, and those that had ended went on as padding",
        share=shares[0],
        tail_share=shares[1],
        signs=(
            share_sign(shares),
            Sign("slices computed for sequences that had ended", padding, 0.05, 0.2),
        ),
        evidence=(
            f"waiting: {of_time(shares)}",
            f"{percent(padding)} of all slices were computed for sequences that had ended",
        ),
        bears_on=("paged",),
    )


def few_seats(figures: Figures) -> Finding:
    shares = figures.share(lambda line: line.cause == lines.WAITING and NO_SEAT in line.detail)
    free, fixed = figures.free_share(NO_SEAT), figures.fixed_share
    seats = max((trail.opened.limits.max_num_seqs for trail in figures.trails), default=0)
    return Finding(
        cause="few-seats",
        says=f"all {seats} seats were taken while there was memory for more sequences",
        share=shares[0],
        tail_share=shares[1],
        signs=(
            share_sign(shares),
            Sign("blocks free meanwhile", free, 0.2, 0.5),
            Sign("of a step's time, what it takes whatever is in it", fixed, 0.2, 0.5),
        ),
        evidence=(
            f"waiting for a seat: {of_time(shares)}",
            f"{percent(free)} of the blocks were free meanwhile, and {percent(fixed)} of the time in steps is what a"
            " step takes whatever is in it",
        ),
        bears_on=("seats",),
        metric="ttft_s",
    )


def _recomputed(figures: Figures, kind: str) -> tuple[float, tuple[float, float]]:
    """The share of computed prompt tokens that are `kind` of `Reuse`, and as much of the time that prompts cost."""
    found = figures.reuse
    tokens = sum(getattr(one, kind) for one in found.values())
    computed = sum(one.prompt_tokens - one.cached for one in found.values()) or 1
    share = tokens / computed
    time = figures.share(lambda line: line.cause in COMPUTING_PROMPTS)
    return share, (time[0] * share, time[1] * share)


def cache_thrash(figures: Figures) -> Finding:
    share, shares = _recomputed(figures, "evicted")
    found = figures.reuse.values()
    asked = sum(one.cached + one.evicted for one in found) or 1
    missed = sum(one.evicted for one in found)
    return Finding(
        cause="cache-thrash",
        says="prefixes were evicted from the cache before they were asked for again",
        share=shares[0],
        tail_share=shares[1],
        signs=(
            share_sign(shares),
            Sign("of the prompt tokens computed, evicted ones", share, 0.2, 0.5),
        ),
        evidence=(
            f"{missed} prompt tokens, {percent(share)} of those computed, had been computed before and had left the"
            f" cache: {percent(missed / asked)} of what could have been read from it",
            f"as much of the time of prompts, and of waiting for them: {of_time(shares)}",
        ),
        bears_on=("blocks", "routing", "replicas"),
        metric="ttft_s",
    )


def private_prefixes(figures: Figures) -> Finding:
    share, shares = _recomputed(figures, "foreign")
    tokens = sum(one.foreign for one in figures.reuse.values())
    spaces = len({life.namespace for life in figures.lives})
    return Finding(
        cause="private-prefixes",
        says="the same prefix was computed again for each namespace; it is nobody's secret if all of them send it",
        share=shares[0],
        tail_share=shares[1],
        signs=(
            share_sign(shares),
            Sign("of the prompt tokens computed, those others had computed", share, 0.2, 0.5),
        ),
        evidence=(
            f"{tokens} prompt tokens, {percent(share)} of those computed, had been computed for another of {spaces}"
            " namespaces",
            f"as much of the time of prompts, and of waiting for them: {of_time(shares)}",
        ),
        bears_on=("public",),
        metric="ttft_s",
    )
