"""Answer an OpenAI batch file, without a server.

    octavo batch in.jsonl out.jsonl          with the bundled model
    octavo batch in.jsonl out.jsonl MODEL

Each input line is {"custom_id", "method": "POST", "url": "/v1/chat/completions", "body"}; all lines have the same url
and model. The file is checked in full before anything runs. Results go to OUT.jsonl.part as they come; the same
command goes on from there after a crash, and OUT.jsonl appears when every line has its result, in the input's order.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from octavo.cli import output, settings
from octavo.cli.main import DONE, FAILED, WRONG_ARGUMENTS
from octavo.cli.models import check_early
from octavo.cli.progress import Progress
from octavo.config import EngineConfig, ServerConfig
from octavo.errors import ConfigError
from octavo.obs.log import Log

if TYPE_CHECKING:
    from octavo.api.batch_file import Index, Invalid
    from octavo.server.front import Front

ENGINE = ("model", "kv", "scheduler", "runtime")
PART = ".part"
IN_FLIGHT = 2
"""Lines kept at the engine, in multiples of max_num_seqs: enough that it never waits for the file."""
SHOWN_ERRORS = 20


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("input", metavar="IN.jsonl", help="requests, one object per line")
    parser.add_argument(
        "output", metavar="OUT.jsonl", help="results; a file that is there is not overwritten"
    )
    parser.add_argument(
        "model", nargs="?", metavar="MODEL", help="directory, hub id, bundled name, or config.json"
    )
    output.add_json(parser)
    settings.add_flags(parser, ENGINE, also=("served_model_name", "engines", "routing", "hold_s"))


def run(args: argparse.Namespace) -> int:
    found = settings.read(args)
    source, target = Path(args.input), Path(args.output)
    part = target.with_name(target.name + PART)
    if not source.is_file():
        raise ConfigError(f"there is no file {source}")
    if target.exists() and not part.exists():
        raise ConfigError(f"{target} is there already; move or delete it, or choose another name")
    check_early(found.engine.model.model)
    return asyncio.run(answer_file(found.engine, found.server, source, target, part, as_json=args.json))


class _Aloud(Log):
    """A log that leaves out what is as it should be."""

    def note(self, event: str, **values: object) -> None:
        del event, values


async def answer_file(
    engine: EngineConfig,
    server: ServerConfig,
    source: Path,
    target: Path,
    part: Path,
    *,
    as_json: bool,
    command: Sequence[str] | None = None,
) -> int:
    """Check, load, run, write; returns the exit code. Raises ConfigError and LoadError.

    command  starts the engine; None starts the real one
    """
    from octavo.api.batch_file import Invalid, Limits, scan
    from octavo.server.endpoints import BATCHED
    from octavo.server.fleet import Fleet
    from octavo.server.front import Front
    from octavo.server.replica import COMMAND

    started_s = time.monotonic()
    limits = Limits(max_lines=2**31, max_bytes=2**62, max_line_bytes=server.max_body_bytes)

    def checked() -> Index:
        with source.open("rb") as file:
            return scan(file, limits, endpoint=None, urls=BATCHED, check_model=lambda _name: None)

    try:
        index = await asyncio.to_thread(checked)
    except Invalid as invalid:
        return _refused(invalid, as_json)
    fleet = Fleet(
        engine,
        _Aloud(sys.stderr, time.time),
        command or COMMAND,
        num_engines=server.engines,
        hold_s=server.hold_s,
        routing=server.routing,
    )
    try:
        ready = await fleet.start(lambda _: None)
        front = Front(server, fleet, ready, _Aloud(sys.stderr, time.time))
        try:
            front.check_model(index.model)
            wanted = IN_FLIGHT * engine.scheduler.max_num_seqs * server.engines
            most = min(wanted, server.max_queued_requests)
            summary = await _run_lines(front, index, source, target, part, most)
        finally:
            front.close()
    finally:
        await fleet.stop()
    summary |= {"model": front.card.id, "elapsed_s": round(time.monotonic() - started_s, 3)}
    _print_summary(summary, as_json)
    return FAILED if summary["failed"] else DONE


async def _run_lines(
    front: Front, index: Index, source: Path, target: Path, part: Path, most: int
) -> dict[str, Any]:
    from octavo.server.batch_run import Job, LineRun
    from octavo.server.ledger import Header, Ledger
    from octavo.server.pace import Pace
    from octavo.server.shelf import Draft
    from octavo.server.tenants import PUBLIC

    header = Header(f"octavo batch {front.fingerprint}", index.digest.hex())
    job = Job(PUBLIC, source.open("rb"), index, Ledger(part, header, len(index)))
    try:
        num_before = job.sums.done
        with Progress("lines", len(index)) as bar:
            bar.advance(num_before)
            run = LineRun(
                front,
                job,
                Pace(most, most),
                on_written=lambda records: bar.advance(len(records)),
                on_disk=_say_disk,
            )
            await run.run()

        def write() -> None:
            with Draft(target.with_name(target.name + ".tmp"), target) as draft:
                for _, line in job.results():
                    draft.write(line)
                draft.commit()

        await asyncio.to_thread(write)
        part.unlink()
    finally:
        job.close()
    sums = job.sums
    return {
        "output": str(target),
        "requests": len(index),
        "completed": sums.completed,
        "failed": sums.failed,
        "resumed": num_before,
        "input_tokens": sums.tokens[0],
        "cached_tokens": sums.tokens[1],
        "output_tokens": sums.tokens[2],
    }


def _say_disk(error: OSError | None) -> None:
    what = (
        "writing again" if error is None else f"cannot write: {error.strerror}; trying again until it works"
    )
    print(f"octavo: {what}", file=sys.stderr, flush=True)


def _refused(invalid: Invalid, as_json: bool) -> int:
    """Name what is wrong with the file."""
    import msgspec

    if as_json:
        output.print_json({"errors": msgspec.to_builtins(invalid.errors)})
    else:
        for error in invalid.errors[:SHOWN_ERRORS]:
            where = "" if error.line is None else f"line {error.line}: "
            print(f"octavo: {where}{error.message} [{error.code}]", file=sys.stderr)
        if len(invalid.errors) > SHOWN_ERRORS:
            print(f"octavo: and {len(invalid.errors) - SHOWN_ERRORS} more", file=sys.stderr)
    return WRONG_ARGUMENTS


def _print_summary(summary: dict[str, Any], as_json: bool) -> None:
    if as_json:
        output.print_json(summary)
        return
    text = f"{summary['completed']} of {summary['requests']} lines answered in {summary['elapsed_s']} s"
    if summary["resumed"]:
        text += f", {summary['resumed']} of them before this run"
    print(f"{text}: {summary['output']}")
    if summary["failed"]:
        print(f"octavo: {summary['failed']} lines failed; their results say why", file=sys.stderr)
