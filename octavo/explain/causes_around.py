"""Causes around an engine: who asks, how requests are spread, what the host, the front and clients do."""

from __future__ import annotations

from octavo.explain import ledger as lines
from octavo.explain.figures import Figures
from octavo.explain.ledger import Line
from octavo.explain.pools import handovers
from octavo.explain.signs import Finding, Sign, of_time, percent, share_sign
from octavo.explain.trail import Life
from octavo.units import format_seconds


def flood(figures: Figures) -> Finding:
    services = list(figures.services.items())
    total = sum(service for _, service in services) or 1.0
    client, most = services[0] if services else ("", 0.0)
    others = [service for _, service in services[1:]]
    mean = sum(others) / len(others) if others else most or 1.0
    shares = figures.share(lambda line: line.cause in (lines.WAITING, lines.PASSED))
    own = figures.share_by(lambda life, line: life.client == client and line.cause == lines.WAITING)
    return Finding(
        cause="flood",
        says=f"one tenant, {client or 'without a name'}, asked for far more than the others, and a queue grew",
        share=shares[0],
        tail_share=shares[1],
        signs=(
            share_sign(shares, 0.1, 0.3),
            Sign("its share of the service", most / total, 0.4, 0.6),
            Sign("its service, in means of the others'", most / (mean or 1.0), 2.0, 5.0),
        ),
        evidence=(
            f"{client or 'it'} had {percent(most / total)} of the tokens that were computed,"
            f" {most / (mean or 1.0):.1f} times the mean of {len(others)} others",
            f"waiting: {of_time(shares)}; its own part of that is {percent(own[0])} of the time of all requests",
        ),
        bears_on=("concurrency", "replicas"),
        client=client,
    )


def unbalanced(figures: Figures) -> Finding:
    places = {trail.engine: place for place, trail in enumerate(figures.trails)}
    engine_of = {life.request_id: books.trail.engine for books, life, _ in figures.rows}

    def has_idle_neighbour(life: Life, line: Line) -> bool:
        if line.cause not in (lines.WAITING, lines.OTHER_DECODES, lines.OTHER_PROMPTS):
            return False
        own = places[engine_of[life.request_id]]
        at_s = line.from_s + line.seconds / 2
        least = min(figures.aboard_at(place, at_s) for place in places.values() if place != own)
        return 2 * least < figures.aboard_at(own, at_s)

    are_alike = len(places) > 1 and not handovers(figures.story)
    shares = figures.share_by(has_idle_neighbour) if are_alike else (0.0, 0.0)
    counts = [sum(life.refused is None for life in trail.lives.values()) for trail in figures.trails] or [0]
    tokens = [sum(ran.num_tokens for _, ran in figures.steps(trail)) for trail in figures.trails] or [0]
    most = max(tokens) / (sum(tokens) or 1) * len(tokens)
    return Finding(
        cause="unbalanced",
        says="one engine had the work while another had less than half as many requests",
        share=shares[0],
        tail_share=shares[1],
        signs=(
            share_sign(shares),
            Sign("the work of the busiest engine, in means of all", most, 1.2, 1.6),
        ),
        evidence=(
            f"waiting, and sharing steps, while another engine had less than half as many aboard: {of_time(shares)}",
            "requests by engine: " + ", ".join(str(count) for count in counts),
        ),
        bears_on=("routing", "replicas"),
    )


def engine_lost(figures: Figures) -> Finding:
    shares = figures.share(lambda line: line.cause == lines.LOST)
    departed = figures.story.departed
    resumed = [served for served in figures.story.served.values() if len(served.placed) > len(served.prompts)]
    evidence = [
        f"engine {one.engine} {one.how} at {format_seconds(one.at_s - figures.start_s)}, with {one.num_aboard} aboard"
        for one in departed
    ]
    return Finding(
        cause="engine-lost",
        says="an engine was lost, and its requests went on elsewhere",
        share=shares[0],
        tail_share=shares[1],
        signs=(
            share_sign(shares, 0.02, 0.1),
            Sign("engines that went", float(len(departed)), 0.0, 1.0),
        ),
        evidence=(
            *evidence,
            f"{len(resumed)} requests went on elsewhere; with the engine that went, and until that was noticed:"
            f" {of_time(shares)}",
        ),
        bears_on=("no-failure", "replicas"),
    )


def decode_behind(figures: Figures) -> Finding:
    found = handovers(figures.story)
    waited_s = sum(one.waited_s for one in found)
    total_s = sum(ledger.wall_s for _, _, ledger in figures.rows) + waited_s
    slowest = sorted(found, key=lambda one: -one.whole_s)[: max(len(found) // 10, 1)]
    tail = sum(one.waited_s for one in slowest) / (sum(one.whole_s for one in slowest) or 1.0)
    answering = {one.to_engine for one in found}
    busy = {books.trail.engine: figures.busy_share(books) for books in figures.story.books}
    behind = [share for engine, share in busy.items() if engine in answering]
    prompts = [share for engine, share in busy.items() if engine not in answering]
    shares = (waited_s / (total_s or 1.0), tail)
    return Finding(
        cause="decode-behind",
        says="the engines that answer could not keep up with those that compute prompts",
        share=shares[0],
        tail_share=shares[1],
        signs=(
            share_sign(shares),
            Sign("busy, of those that answer", min(behind, default=0.0), 0.7, 0.9),
            Sign("busy, of those that compute prompts", max(prompts, default=1.0), 0.9, 0.6),
        ),
        evidence=(
            f"from a prompt's end until an engine that answers had room: {of_time(shares)}",
            f"{len(answering)} engines that answer are in steps {percent(min(behind, default=0.0))} of the time,"
            f" {len(prompts)} that compute prompts {percent(max(prompts, default=0.0))} at most",
        ),
        bears_on=("decode-replicas", "seats", "blocks"),
    )


def host_bound(figures: Figures) -> Finding:
    shares = figures.share(lambda line: line.cause == lines.BETWEEN)
    return Finding(
        cause="host-bound",
        says="the device waited for the host between one step and the next",
        share=shares[0],
        tail_share=shares[1],
        signs=(share_sign(shares, 0.1, 0.3),),
        evidence=(f"between steps: {of_time(shares)}",),
        bears_on=("quick-host", "replicas"),
        metric="tpot_s",
    )


def slow_front(figures: Figures) -> Finding:
    shares = figures.share(lambda line: line.cause in (lines.FRONT, lines.LINK, lines.TELLING))
    return Finding(
        cause="slow-front",
        says="requests and tokens spent their time in the front process, before and after the engine",
        share=shares[0],
        tail_share=shares[1],
        signs=(share_sign(shares, 0.1, 0.3),),
        evidence=(f"read, on the way to the engine, and on the way back: {of_time(shares)}",),
        bears_on=(),
    )


def slow_clients(figures: Figures) -> Finding:
    shares = figures.share(lambda line: line.cause in (lines.SENDING, lines.STALLED))
    return Finding(
        cause="slow-clients",
        says="clients took what was ready for them slowly",
        share=shares[0],
        tail_share=shares[1],
        signs=(share_sign(shares, 0.1, 0.3),),
        evidence=(f"ready, and not taken: {of_time(shares)}",),
        bears_on=(),
    )


def overload(figures: Figures) -> Finding:
    shares = figures.share(lambda line: line.cause in (lines.WAITING, lines.PASSED))
    early, late = figures.growth
    return Finding(
        cause="overload",
        says="more came than could be computed, and piled up",
        share=shares[0],
        tail_share=shares[1],
        signs=(
            share_sign(shares, 0.1, 0.3),
            Sign("growth of what engines have, of the last third", (late - early) / max(late, 1.0), 0.2, 0.5),
            Sign("of a step's time, what is in it", 1 - figures.fixed_share, 0.4, 0.7),
        ),
        evidence=(
            f"waiting, and having no part in steps that were full: {of_time(shares)}",
            f"{early:.1f} requests were aboard in the first third of the time they came in, {late:.1f} in the last",
            f"{percent(1 - figures.fixed_share)} of the time in steps went into what was in them",
        ),
        bears_on=("replicas",),
    )
