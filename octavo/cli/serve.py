"""Serve a model over HTTP, in the way the OpenAI clients expect.

    octavo serve                       the bundled model on http://127.0.0.1:8000
    octavo serve PATH --port 8080      another one
    curl http://127.0.0.1:8000/v1/models

Ctrl-C or SIGTERM lets running requests end first; a second one does not wait.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys

from octavo.cli import env, output, settings
from octavo.cli.models import check_early
from octavo.config import SECTIONS
from octavo.link import frames
from octavo.units import format_bytes, format_seconds


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", nargs="?", metavar="MODEL", help="directory, hub id, bundled name, or config.json"
    )
    output.add_json(parser)
    settings.add_flags(parser, SECTIONS)


def run(args: argparse.Namespace) -> int:
    from octavo.server.run import serve

    found = settings.read(args)
    check_early(found.engine.model.model)
    if found.server.host not in ("127.0.0.1", "localhost", "::1") and not (
        found.server.api_key or found.server.keys
    ):
        print(
            f"octavo: anybody who can reach {found.server.host} may use this server; set --keys or --api-key",
            file=sys.stderr,
        )

    def on_ready(address: str, ready: frames.Ready) -> None:
        if args.json:
            print(json.dumps(_facts(address, ready)), flush=True)
            return
        print(_line(address, found.server.served_model_name or ready.model, ready), flush=True)

    asyncio.run(
        serve(
            found.engine,
            found.server,
            on_loading=_Loading().note,
            on_ready=on_ready,
            manager_says=env.service_manager(),
        )
    )
    return 0


class _Loading:
    """The memory plan, then a line per phase; a small model is loaded before a bar would be seen."""

    def __init__(self) -> None:
        self._phase = ""

    def note(self, progress: frames.Loading) -> None:
        for what, num_bytes, remark in progress.memory:
            print(f"{what:10} {format_bytes(num_bytes):>10}  {remark}".rstrip(), file=sys.stderr)
        if progress.phase != self._phase:
            self._phase = progress.phase
            size = f" ({format_bytes(progress.total)})" if progress.total else ""
            print(f"loading {progress.phase}{size}", file=sys.stderr, flush=True)


def _line(address: str, name: str, ready: frames.Ready) -> str:
    company = "" if ready.batch_invariant else ", bits depend on the batch"
    return f"ready: {address} (model {name}, kv {ready.num_kv_blocks} blocks{company})"


def _facts(address: str, ready: frames.Ready) -> dict[str, object]:
    return {
        "ready": address,
        "model": ready.model,
        "dtype": ready.dtype,
        "device": ready.device,
        "max_model_len": ready.max_model_len,
        "num_kv_blocks": ready.num_kv_blocks,
        "block_tokens": ready.block_tokens,
        "batch_invariant": ready.batch_invariant,
        "load_s": ready.load_s,
        "load": format_seconds(ready.load_s),
    }
