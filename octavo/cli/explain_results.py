"""What happened in a recording, on a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from octavo.cli import output
from octavo.units import format_seconds

if TYPE_CHECKING:
    from octavo.explain.ledger import Ledger
    from octavo.explain.story import Explained

NUM_SHARES = 8
METRICS = (("ttft_s", "TTFT"), ("tpot_s", "TPOT"), ("gap_s", "longest pause"), ("e2e_s", "whole"))


def print_request(one: Explained) -> None:
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


def print_verdict(document: dict[str, Any]) -> None:
    _print_overview(document)
    print()
    _print_findings(document)
    if document["what_if"] is not None:
        print()
        _print_what_if(document["what_if"])


def _print_overview(document: dict[str, Any]) -> None:
    for name, value in document["about"].items():
        print(f"{name:<12} {value}")
    print()
    shown = document["time"][:NUM_SHARES]
    rows = [(format_seconds(row["seconds"]), f"{row['share']:.1%}", row["what"]) for row in shown]
    rest = document["time"][NUM_SHARES:]
    if rest:
        seconds, share = (sum(row[name] for row in rest) for name in ("seconds", "share"))
        rows.append((format_seconds(seconds), f"{share:.1%}", f"{len(rest)} more"))
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


def _print_findings(document: dict[str, Any]) -> None:
    found = document["findings"]
    if not found:
        print("nothing stands out: no cause that is looked for explains enough of the time of requests")
        for row in document["time"][:3]:
            print(f"  {row['share']:.0%} of it: {row['what']}")
        return
    for place, one in enumerate(found):
        title = "what happened" if place == 0 else "besides"
        print(f"{title}: {one['says']} ({one['cause']})")
        print(f"  how sure: {one['confidence']:.0%}, from")
        for sign in one["signs"]:
            print(
                f"    {sign['says']}: {sign['value']:.2f} (nothing at {sign['nothing_at']:g},"
                f" plain at {sign['plain_at']:g})"
            )
        print("  evidence:")
        for line in one["evidence"]:
            print(f"    {line}")


def _print_what_if(found: dict[str, Any]) -> None:
    cut = "" if found["requests"] == found["requests_recorded"] else f" of {found['requests_recorded']}"
    print(
        f"what if: the arrivals of {found['requests']}{cut} requests again, in the simulator, whose steps take what a"
        f" model of the recorded ones says (median error {found['error_of_step_model']:.1%})"
    )
    columns = ("", *(f"{title} {name}" for _, title in METRICS for name in ("p50", "p99")), "tokens/s")
    rows = [
        ("recorded", *_cells(found["recorded"]), ""),
        ("as recorded, simulated", *_cells(found["simulated"]), f"{found['simulated_tokens_per_s']:.0f}"),
        ("  off by", *_errors(found["error"]), ""),
    ]
    rows += [(one["change"], *_cells(one), f"{one['tokens_per_s']:.0f}") for one in found["changes"]]
    output.print_table(columns, rows, right=tuple(range(1, len(columns))))
    advice = found["advice"]
    print(f"\nadvice: {advice['says']}")
    if advice["command"]:
        print(f"  {advice['command']}")


def _cells(spread: dict[str, Any]) -> list[str]:
    return [
        format_seconds(spread[metric][name]) if name in spread.get(metric, {}) else "-"
        for metric, _ in METRICS
        for name in ("p50", "p99")
    ]


def _errors(spread: dict[str, Any]) -> list[str]:
    return [
        f"{spread[metric][name]:+.1%}" if name in spread.get(metric, {}) else "-"
        for metric, _ in METRICS
        for name in ("p50", "p99")
    ]
