"""What happened, and why, from a recording: `octavo serve` saves one on SIGUSR2, on the operator's word, after a crash.

octavo explain FILE                      the whole of it: what it holds, and the requests that took longest
octavo explain FILE --request ID         one request: where each millisecond of it went
octavo explain FILE --perfetto OUT.json  as a trace for ui.perfetto.dev
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from octavo.cli import output
from octavo.errors import ConfigError, RequestError
from octavo.units import format_seconds

if TYPE_CHECKING:
    from octavo.explain.ledger import Ledger
    from octavo.explain.story import Explained, Story

NUM_SLOWEST = 10


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recording", metavar="FILE", help="what a server saved")
    parser.add_argument("--request", metavar="ID", help="as its x-request-id, or as an engine knows it")
    parser.add_argument("--perfetto", metavar="OUT.json", help="write steps and requests as a trace")
    output.add_json(parser)


def run(args: argparse.Namespace) -> int:
    from octavo.explain.perfetto import trace_events
    from octavo.explain.story import Story
    from octavo.obs import recording

    story = Story(recording.read(Path(args.recording)))
    if args.perfetto:
        try:
            Path(args.perfetto).write_text(json.dumps(trace_events(story)), encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"cannot write {args.perfetto}: {error.strerror}") from error
    if args.request is not None:
        _show_request(story, args.request, as_json=args.json)
    elif args.json:
        output.print_json(story.overview(NUM_SLOWEST))
    else:
        _print_overview(story.overview(NUM_SLOWEST))
    return 0


def _show_request(story: Story, name: str, *, as_json: bool) -> None:
    found = story.request(name)
    if not found:
        close = story.nearest(name)
        hint = f"; did you mean {close}?" if close else ""
        raise RequestError(f"request {name!r} is not in this recording{hint}", param="request")
    if as_json:
        output.print_json([one.document() for one in found])
        return
    for one in found:
        _print_request(one)


def _print_request(one: Explained) -> None:
    for fact in one.facts:
        print(fact)
    if one.first is not None:
        print(f"\nto its first token: {format_seconds(one.first.wall_s)}")
        _print_ledger(one.first)
        print(f"\nall of it: {format_seconds(one.whole.wall_s)}")
    else:
        print(f"\nits time: {format_seconds(one.whole.wall_s)}")
    _print_ledger(one.whole)


def _print_ledger(ledger: Ledger) -> None:
    rows = []
    for total in ledger.totals():
        text = total.cause + (f": {total.detail}" if total.detail else "")
        names = ", ".join(total.who[:2]) + (f" and {len(total.who) - 2} more" if len(total.who) > 2 else "")
        rows.append((format_seconds(total.seconds), f"{total.seconds / ledger.wall_s:.1%}", text, names))
    rows.append((format_seconds(sum(line.seconds for line in ledger.lines)), "", "in all", ""))
    output.print_table(("time", "", "what", "whose"), rows, right=(0, 1))


def _print_overview(document: dict[str, Any]) -> None:
    for name, value in document["about"].items():
        print(f"{name:<12} {value}")
    print()
    rows = [(format_seconds(row["seconds"]), f"{row['share']:.1%}", row["what"]) for row in document["time"]]
    output.print_table(("time of requests", "", "what it went into"), rows, right=(0, 1))
    print()
    slow = [
        (
            row["request"],
            format_seconds(row["seconds"]),
            str(row["prompt_tokens"]),
            str(row["output_tokens"]),
            row["mostly"],
        )
        for row in document["slowest"]
    ]
    output.print_table(("the slowest", "took", "prompt", "output", "mostly"), slow, right=(1, 2, 3))
