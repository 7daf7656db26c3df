"""What happened, and why, from a recording: `octavo serve` saves one on SIGUSR2, on the operator's word, after a crash.

octavo explain FILE                      the whole of it: what happened, how sure, the evidence, what would have helped
octavo explain FILE --from 40s --to 60s  the same of an interval
octavo explain FILE --request ID         one request: where each millisecond of it went
octavo explain FILE --perfetto OUT.json  as a trace for ui.perfetto.dev
octavo explain --case NAME               a shipped incident whose cause is known; --cases lists them
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from octavo.cli import explain_results, output
from octavo.errors import ConfigError, RequestError
from octavo.units import parse_count, parse_seconds

if TYPE_CHECKING:
    from octavo.explain.story import Story
    from octavo.obs.recording import Recording


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recording", nargs="?", metavar="FILE", help="what a server saved")
    parser.add_argument("--request", metavar="ID", help="as its x-request-id, or as an engine knows it")
    parser.add_argument("--from", dest="from_s", metavar="TIME", help="look at what came after, such as 40s")
    parser.add_argument(
        "--to", dest="to_s", metavar="TIME", help="and before, from the recording's beginning"
    )
    parser.add_argument("--no-what-if", action="store_true", help="simulate nothing")
    parser.add_argument(
        "--requests", metavar="COUNT", help="to simulate, at the most: those around the slowest ones [4000]"
    )
    parser.add_argument(
        "--target-p99",
        metavar="TIME",
        help="to be kept where only capacity helps [twice that of an idle system]",
    )
    parser.add_argument("--perfetto", metavar="OUT.json", help="write steps and requests as a trace")
    parser.add_argument("--case", metavar="NAME", help="a shipped incident instead of a file")
    parser.add_argument("--cases", action="store_true", help="list the shipped incidents")
    parser.add_argument("--save", metavar="FILE", help="write the recording of --case")
    output.add_json(parser)


def run(args: argparse.Namespace) -> int:
    if args.cases:
        _list_cases(as_json=args.json)
        return 0
    found = _recording(args)
    from octavo.explain.perfetto import trace_events
    from octavo.explain.story import Story

    story = Story(found)
    if args.perfetto:
        try:
            Path(args.perfetto).write_text(json.dumps(trace_events(story)), encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"cannot write {args.perfetto}: {error.strerror}") from error
    if args.request is not None:
        _show_request(story, args.request, as_json=args.json)
    else:
        _show_whole(story, args)
    return 0


def _recording(args: argparse.Namespace) -> Recording:
    if (args.recording is None) == (args.case is None):
        raise ConfigError(
            "name a FILE that a server saved, or a shipped incident with --case; --cases lists them"
        )
    if args.case is None:
        if args.save is not None:
            raise ConfigError("--save writes the recording of a --case; a FILE is there already")
        from octavo.obs import recording

        return recording.read(Path(args.recording))
    from octavo.explain.cases import case
    from octavo.explain.scenes import play, save

    found, _ = play(case(args.case).scene)
    if args.save is not None:
        save(Path(args.save), found)
    return found


def _list_cases(*, as_json: bool) -> None:
    from octavo.explain.cases import CASES, HEALTHY

    rows = [
        {"name": name, "cause": one.cause, "incident": one.line} for name, one in {**CASES, **HEALTHY}.items()
    ]
    if as_json:
        output.print_json(rows)
        return
    table = [(row["name"], row["cause"] or "nothing", row["incident"]) for row in rows]
    output.print_table(("case", "cause", "what happens"), table)


def _show_whole(story: Story, args: argparse.Namespace) -> None:
    from octavo.explain.verdict import verdict
    from octavo.explain.whatif import MAX_REQUESTS

    from_s = 0.0 if args.from_s is None else parse_seconds(args.from_s)
    to_s = float("inf") if args.to_s is None else parse_seconds(args.to_s)
    if from_s >= to_s:
        raise ConfigError(f"--from {args.from_s} must be before --to {args.to_s}")
    max_requests = MAX_REQUESTS if args.requests is None else parse_count(args.requests)
    if max_requests < 1:
        raise ConfigError(f"--requests must be at least 1, got {args.requests}")
    document = verdict(
        story,
        from_s=from_s,
        to_s=to_s,
        simulates=not args.no_what_if,
        max_requests=max_requests,
        target_p99_s=None if args.target_p99 is None else parse_seconds(args.target_p99),
    )
    if args.json:
        output.print_json(document)
    else:
        explain_results.print_verdict(document)


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
        explain_results.print_request(one)
