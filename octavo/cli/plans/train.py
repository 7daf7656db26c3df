"""Time and money to train a model, and whether its compute is well split between size and tokens.

octavo plan train MODEL --tokens 15T --devices 16384        a config.json, a known name or a hub id
octavo plan train --params 70B --tokens 1.4T --mfu 0.45     or a size alone, at 6 FLOPs a parameter and token

FLOPs of a model are counted matrix by matrix, attention over each training sequence included. MFU counts these
FLOPs: not the ones that recomputation adds.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from octavo.cli import output
from octavo.cli.amounts import amount, short
from octavo.cli.plans import models, training_flags
from octavo.errors import ConfigError

if TYPE_CHECKING:
    from octavo.planner.train_cost import Fleet, TrainCost, Verdict, Workload


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", metavar="MODEL", help="config.json, known name or hub id")
    parser.add_argument("--params", type=amount, help="parameters, instead of a model")
    parser.add_argument("--active-params", type=amount, help="of which a token passes")
    parser.add_argument(
        "--tokens", type=amount, required=True, help="training tokens, repeated ones included"
    )
    training_flags.add(parser)


def run(args: argparse.Namespace) -> int:
    from octavo.planner import train_cost
    from octavo.planner.laws import ParametricLaw
    from octavo.planner.published import published

    work = _workload(args)
    fleet = training_flags.fleet(args)
    bill = train_cost.cost(work.flop, fleet)
    law = published(args.law).law
    judged = None
    if isinstance(law, ParametricLaw):
        judged = train_cost.verdict(law, work.active_params, work.tokens)
    notes = _notes(work, args.law, judged is None)
    if args.json:
        output.print_json(_as_json(work, bill, fleet, args.law, judged, notes))
    else:
        _print(work, bill, fleet, args.law, judged, notes)
    return 0


def _workload(args: argparse.Namespace) -> Workload:
    from octavo.planner import train_cost

    if (args.model is None) == (args.params is None):
        raise ConfigError("octavo plan train needs either a MODEL or --params")
    if args.model is None:
        return train_cost.of_size(args.params, args.tokens, args.active_params)
    if args.active_params is not None:
        raise ConfigError("--active-params goes with --params; a MODEL says its own")
    return train_cost.of_shape(models.find(args.model)[1], args.tokens, int(args.sequence))


def _notes(work: Workload, law: str, is_mute: bool) -> list[str]:
    from octavo.planner.published import beyond

    flop = 6 * work.active_params * work.tokens
    notes = beyond(law, params=work.active_params, tokens=work.tokens, flop=flop)
    if is_mute:
        notes.append(f"{law} predicts no loss, so nothing is said of the split; try --law corrected")
    if work.active_params < work.params:
        notes.append(
            "laws of dense models are read with the active parameters; experts do better than they say"
        )
    if not work.is_exact:
        notes.append("6 FLOPs a parameter and token: attention and the head's share are left to a MODEL")
    return notes


def _print(
    work: Workload, bill: TrainCost, fleet: Fleet, law: str, judged: Verdict | None, notes: list[str]
) -> None:
    active = f", {short(work.active_params)} of them active" if work.active_params < work.params else ""
    print(f"{short(work.params)} parameters{active}, {short(work.tokens)} tokens")
    ratio = work.flop_per_token / (6 * work.active_params)
    print(f"{work.flop:.4g} FLOPs, {short(work.flop_per_token)} a token: {ratio:.3f} x 6 N")
    print(training_flags.describe(bill, fleet))
    if judged is not None:
        best = judged.best
        print(
            f"\nby {law}: {work.tokens / work.active_params:.1f} tokens a parameter, loss {judged.loss:.4f}"
        )
        print(
            f"best split of the same 6 N D: {short(best.params)} parameters on {short(best.tokens)} tokens "
            f"({best.tokens_per_param:.1f}), loss {best.loss:.4f}"
        )
        print(
            f"split best, {judged.enough_flop:.4g} FLOPs would reach the plan's loss: {judged.wasted_share:.1%} less"
        )
        if work.active_params < best.params and judged.wasted_share > 0.01:
            print(
                "a smaller model trained longer costs less to serve; octavo plan design --served-tokens weighs that"
            )
    for note in notes:
        print(f"note: {note}")


def _as_json(
    work: Workload, bill: TrainCost, fleet: Fleet, law: str, judged: Verdict | None, notes: list[str]
) -> dict[str, Any]:
    return {
        "params": work.params,
        "active_params": work.active_params,
        "tokens": work.tokens,
        "flop_per_token": work.flop_per_token,
        "is_exact": work.is_exact,
        "fleet": training_flags.fleet_json(fleet),
        "bill": training_flags.bill_json(bill),
        "law": law,
        "verdict": None
        if judged is None
        else {
            "loss": judged.loss,
            "tokens_per_param": work.tokens / work.active_params,
            "best_params": judged.best.params,
            "best_tokens": judged.best.tokens,
            "best_tokens_per_param": judged.best.tokens_per_param,
            "best_loss": judged.best.loss,
            "enough_flop": judged.enough_flop,
            "wasted_share": judged.wasted_share,
        },
        "notes": notes,
    }
