"""Settings as they stand, where each came from, and what the open ones would become.

octavo config --origin             flag, variable, file or default
octavo config MODEL --resolve      "auto" as the engine would settle it here, and why
"""

from __future__ import annotations

import argparse
from typing import Any

from octavo.cli import output, settings
from octavo.cli.plans.memory import look_ahead
from octavo.config import KNOBS, SECTIONS
from octavo.config.knobs import Knob


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", metavar="MODEL", help="as for the other commands")
    parser.add_argument("--origin", action="store_true", help="say where each value came from")
    parser.add_argument(
        "--resolve", action="store_true", help="settle what is open, for MODEL and this machine"
    )
    output.add_json(parser)
    settings.add_flags(parser, SECTIONS)


def run(args: argparse.Namespace) -> int:
    found = settings.read(args)
    settled = _settled(found) if args.resolve else {}
    rows = [_row(found, knob, settled) for knob in KNOBS]
    columns = ["setting", "value"]
    columns += ["origin"] if args.origin else []
    columns += ["because"] if args.resolve else []
    if args.json:
        output.print_json({row["setting"]: _entry(row, columns) for row in rows})
    else:
        output.print_table(columns, [[row[name] for name in columns] for row in rows])
    return 0


def _settled(found: settings.Settings) -> dict[str, tuple[str, str]]:
    """Open settings to (value, reason)."""
    _, resolved = look_ahead(found.engine)
    return {made.field: (made.value, made.because) for made in resolved.decisions}


def _row(found: settings.Settings, knob: Knob, settled: dict[str, tuple[str, str]]) -> dict[str, Any]:
    """One setting under every column, and its plain value under "plain"."""
    origin = found.origins[knob.name]
    value, because = settled.get(knob.name, (_shown(found, knob), ""))
    return {
        "setting": knob.name,
        "value": value,
        "origin": origin.where if origin.kind == "default" else f"{origin.kind} {origin.where}",
        "because": because,
        "plain": value if knob.secret or knob.name in settled else found.value(knob),
        "from": {"origin": origin.kind, "where": origin.where},
    }


def _entry(row: dict[str, Any], columns: list[str]) -> Any:
    if len(columns) == 2:
        return row["plain"]
    entry = {"value": row["plain"]}
    entry |= row["from"] if "origin" in columns else {}
    entry |= {"because": row["because"]} if row["because"] else {}
    return entry


def _shown(found: settings.Settings, knob: Knob) -> str:
    value = found.value(knob)
    if knob.secret:
        return f"{len(value)} set, not shown" if value else "none"
    if value is None:
        return knob.none or "none"
    return str(value).lower() if isinstance(value, bool) else str(value)
