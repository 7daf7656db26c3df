"""Dollars for a million tokens: of devices by the hour, by how much they are used, and by kind of token.

octavo plan cost --usd-per-hour 3 --tokens-per-s 1000                    plain arithmetic
octavo plan cost llama-3.1-8b --devices h100 --prompt-tokens 1000 --output-tokens 300 --cached-tokens 400
octavo plan cost MODEL ... --price h100=2.5 --utilization 1,0.4 --tpot 40ms

Of a model: the cheapest layout that keeps the limits, fully loaded. Prompts cost the device-seconds by which they make
steps longer, answers the rest, cached tokens what reading them makes prompts longer.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from octavo.cli import output
from octavo.cli.plans import models, serve, spread_flags
from octavo.errors import ConfigError

if TYPE_CHECKING:
    from octavo.planner.layouts import Ask
    from octavo.planner.ranking import Plan

UTILIZATIONS = "1,0.7,0.4,0.2"
FULL = 1e9
"""Requests at once that load any replica fully."""


def configure(parser: argparse.ArgumentParser) -> None:
    spread_flags.add_model(parser)
    parser.add_argument(
        "--usd-per-hour", type=float, metavar="USD", help="of all devices, instead of a model"
    )
    parser.add_argument("--tokens-per-s", type=float, metavar="TOKENS", help="that they do")
    parser.add_argument(
        "--utilization",
        default=UTILIZATIONS,
        metavar="SHARE,...",
        help=f"of the time in use [{UTILIZATIONS}]",
    )
    serve.add_load(parser, required=False)
    serve.add_layouts(parser)
    output.add_json(parser)


def run(args: argparse.Namespace) -> int:
    shares = utilizations(args.utilization)
    found = _plain(args, shares) if args.model is None else _of_model(args, shares)
    if args.json:
        output.print_json(found)
    else:
        _print(found)
    return 0


def utilizations(text: str) -> list[float]:
    """Raises ConfigError."""
    try:
        shares = [float(word) for word in text.split(",")]
    except ValueError:
        shares = []
    if not shares or not all(0 < share <= 1 for share in shares):
        raise ConfigError(f"--utilization {text!r} must be shares above 0 and at most 1, such as 1,0.4")
    return shares


def full(args: argparse.Namespace) -> tuple[str, Ask, Plan]:
    """The model, the question, and the cheapest layout that keeps the limits, fully loaded. Raises ConfigError."""
    from octavo.planner.ranking import rank

    if args.prompt_tokens is None or args.output_tokens is None:
        raise ConfigError("a MODEL needs --prompt-tokens and --output-tokens")
    name, shape = models.find(args.model)
    args.rate, args.concurrency = None, FULL
    asked = serve.ask(args, shape)
    plans = rank(asked).plans
    if not plans:
        raise ConfigError(
            "no layout keeps the limits; `octavo plan serve` with the same flags says which limit binds"
        )
    if plans[0].usd_per_hour is None:
        raise ConfigError(
            f"no price of {plans[0].replica.device.name} is known; say --price {plans[0].replica.device.name}=USD"
        )
    return name, asked, plans[0]


def _plain(args: argparse.Namespace, shares: list[float]) -> dict[str, Any]:
    from octavo.planner.cost import usd_per_million

    if args.usd_per_hour is None or args.tokens_per_s is None:
        raise ConfigError("octavo plan cost needs a MODEL, or --usd-per-hour and --tokens-per-s")
    return {
        "usd_per_hour": args.usd_per_hour,
        "tokens_per_s": args.tokens_per_s,
        "basis": "exact",
        "usd_per_million": {
            f"{share:g}": usd_per_million(args.usd_per_hour, args.tokens_per_s, share) for share in shares
        },
    }


def _of_model(args: argparse.Namespace, shares: list[float]) -> dict[str, Any]:
    from octavo.planner import certainty
    from octavo.planner.capacity import Steps
    from octavo.planner.cost import HOUR_S, MILLION, most_watt_hours_per_million, token_seconds

    if args.usd_per_hour is not None or args.tokens_per_s is not None:
        raise ConfigError("--usd-per-hour and --tokens-per-s go without a MODEL; --price is for devices")
    name, asked, plan = full(args)
    replica, most = plan.replica, plan.most
    hourly = asked.price(replica.device) or 0.0
    rate = certainty.predicted("rate", asked.shape, most.output_per_s)
    seconds = token_seconds(Steps(replica, asked.load), most)
    kinds = {"input": seconds.fresh_s, "cached input": seconds.cached_s, "output": seconds.output_s}
    if not asked.load.cached_tokens:
        del kinds["cached input"]
    all_in = MILLION * hourly * replica.num_devices / (HOUR_S * most.output_per_s)
    kinds = {kind: MILLION * hourly * value / HOUR_S for kind, value in kinds.items()}
    power = replica.device.max_w
    return {
        "model": name,
        "layout": plan.label,
        "usd_per_device_hour": hourly,
        "price_basis": "given" if replica.device.name in asked.prices else certainty.ASSUMED,
        "requests_per_s": most.requests_per_s,
        "concurrency": most.concurrency,
        "limited_by": plan.limited_by,
        "output_per_s": rate.as_json(),
        "usd_per_million": {
            f"{share:g}": {
                **{kind: certainty.inverse(rate, usd / share).as_json() for kind, usd in kinds.items()},
                "output, all in": certainty.inverse(rate, all_in / share).as_json(),
            }
            for share in shares
        },
        "watt_hours_per_million_output_at_most": None
        if power is None
        else most_watt_hours_per_million(power, replica.num_devices, most.output_per_s),
    }


def _print(found: dict[str, Any]) -> None:
    if "model" not in found:
        print(f"${found['usd_per_hour']:g} an hour at {found['tokens_per_s']:g} tokens/s\n")
        plain = [(f"{float(share):.0%}", f"${usd:.4f}") for share, usd in found["usd_per_million"].items()]
        output.print_table(["in use", "a million"], plain, right=[0, 1])
        return
    price = f"${found['usd_per_device_hour']:g} a device and hour, {found['price_basis']}"
    print(f"{found['model']} on [{found['layout']}], {price}")
    rate = found["output_per_s"]
    print(
        f"one replica, full: {found['concurrency']:.0f} at once, {found['requests_per_s']:.2f} requests/s, "
        f"{rate['value']:.0f} tokens/s ({rate['low']:.0f} .. {rate['high']:.0f}); {found['limited_by']} ends it\n"
    )
    kinds = list(next(iter(found["usd_per_million"].values())))
    rows = [
        (f"{float(share):.0%}", *(_spread(each[kind]) for kind in kinds))
        for share, each in found["usd_per_million"].items()
    ]
    print("dollars for a million tokens, with the 90 % interval of the rate")
    output.print_table(["in use", *kinds], rows, right=range(1 + len(kinds)))
    energy = found["watt_hours_per_million_output_at_most"]
    said = "unknown" if energy is None else f"at most {energy:.0f} Wh, each device at its power limit"
    print(f"\nenergy of a million tokens of answers: {said}")


def _spread(figure: dict[str, Any]) -> str:
    return f"{figure['value']:.3f} ({figure['low']:.3f} .. {figure['high']:.3f})"
