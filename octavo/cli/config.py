"""Resolved settings and, with --origin, where each came from."""

from __future__ import annotations

import argparse
from typing import Any

from octavo.cli import output, settings
from octavo.config import KNOBS, SECTIONS, Knob


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", metavar="MODEL", help="as for the other commands")
    parser.add_argument("--origin", action="store_true", help="say where each value came from")
    output.add_json(parser)
    settings.add_flags(parser, SECTIONS)


def run(args: argparse.Namespace) -> int:
    found = settings.read(args)
    if args.json:
        rows = {knob.name: _entry(found, knob, args.origin) for knob in KNOBS}
        output.print_json(rows)
        return 0
    columns = ["setting", "value", "origin"] if args.origin else ["setting", "value"]
    table = [[knob.name, _shown(found, knob), _origin(found, knob)][: len(columns)] for knob in KNOBS]
    output.print_table(columns, table)
    return 0


def _entry(found: settings.Settings, knob: Knob, with_origin: bool) -> Any:
    value = _shown(found, knob) if knob.secret else found.value(knob)
    if not with_origin:
        return value
    origin = found.origins[knob.name]
    return {"value": value, "origin": origin.kind, "where": origin.where}


def _shown(found: settings.Settings, knob: Knob) -> str:
    value = found.value(knob)
    if knob.secret:
        return f"{len(value)} set, not shown" if value else "none"
    if value is None:
        return knob.none or "none"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _origin(found: settings.Settings, knob: Knob) -> str:
    origin = found.origins[knob.name]
    return origin.where if origin.kind == "default" else f"{origin.kind} {origin.where}"
