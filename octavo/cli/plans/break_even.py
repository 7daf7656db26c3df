r"""From what load on devices of one's own cost less than an API, which is paid by the token.

octavo plan break-even llama-3.1-70b --devices h200 --prompt-tokens 2000 --output-tokens 300 \
    --api-input 0.9 --api-output 0.9
octavo plan break-even MODEL ... --cached-tokens 1200 --api-cached 0.3 --batch-discount 0.5
octavo plan break-even --usd-per-hour 3 --requests-per-s 2 --prompt-tokens 1000 --output-tokens 500 \
    --api-input 0.5 --api-output 1.5

Devices are reserved: paid for whether they work or not. API prices are dollars for a million tokens.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from octavo.cli import output
from octavo.cli.plans import cost, serve, spread_flags
from octavo.errors import ConfigError

if TYPE_CHECKING:
    from octavo.planner.certainty import Figure
    from octavo.planner.cost import Price


def configure(parser: argparse.ArgumentParser) -> None:
    spread_flags.add_model(parser)
    parser.add_argument(
        "--usd-per-hour", type=float, metavar="USD", help="of all devices, instead of a model"
    )
    parser.add_argument("--requests-per-s", type=float, metavar="RATE", help="that they do when full")
    prices = parser.add_argument_group("the API")
    prices.add_argument(
        "--api-input", type=float, required=True, metavar="USD", help="a million tokens of prompt"
    )
    prices.add_argument("--api-output", type=float, required=True, metavar="USD", help="of answer")
    prices.add_argument(
        "--api-cached", type=float, metavar="USD", help="of prompt found in its cache [as input]"
    )
    prices.add_argument(
        "--batch-discount",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="such as 0.5, if requests may wait [0]",
    )
    parser.add_argument(
        "--utilization",
        default=cost.UTILIZATIONS,
        metavar="SHARE,...",
        help=f"of the time in use [{cost.UTILIZATIONS}]",
    )
    serve.add_load(parser, required=True)
    serve.add_layouts(parser)
    output.add_json(parser)


def run(args: argparse.Namespace) -> int:
    found = _found(args)
    if args.json:
        output.print_json(found)
    else:
        _print(found)
    return 0


def _found(args: argparse.Namespace) -> dict[str, Any]:
    from octavo.planner import certainty
    from octavo.planner.cost import Price, break_even

    shares = cost.utilizations(args.utilization)
    price = Price(
        input_usd=args.api_input,
        output_usd=args.api_output,
        cached_usd=args.api_cached,
        discount=args.batch_discount,
    )
    name, layout, hourly, rate = _own(args)
    load = serve.load(args)
    made = break_even(hourly, rate.value, load, price)
    usage = certainty.inverse(rate, made.utilization) if rate.low is not None else None
    return {
        "model": name,
        "layout": layout,
        "usd_per_hour": hourly,
        "requests_per_s": rate.as_json(),
        "api_usd_per_request": made.request_usd,
        "requests_per_hour": made.requests_per_hour,
        "tokens_per_hour": made.requests_per_hour * (load.prompt_tokens + load.output_tokens),
        "utilization": made.utilization if usage is None else usage.as_json(),
        "pays": made.pays,
        "usd_per_request": {f"{share:g}": made.usd_per_request(share) for share in shares},
        "api": _price(price),
    }


def _price(price: Price) -> dict[str, float | None]:
    return {
        "input": price.input_usd,
        "cached": price.cached_usd,
        "output": price.output_usd,
        "discount": price.discount,
    }


def _own(args: argparse.Namespace) -> tuple[str | None, str | None, float, Figure]:
    """Dollars an hour of the smallest unit that can be bought, and what it does when full. Raises ConfigError."""
    from octavo.planner import certainty

    plain = args.usd_per_hour is not None or args.requests_per_s is not None
    if (args.model is None) is not plain:
        raise ConfigError("octavo plan break-even needs a MODEL, or --usd-per-hour and --requests-per-s")
    if plain:
        if args.usd_per_hour is None or args.requests_per_s is None:
            raise ConfigError("--usd-per-hour and --requests-per-s go together")
        rate = certainty.Figure(value=args.requests_per_s, basis="given", source="--requests-per-s")
        return None, None, args.usd_per_hour, rate
    name, asked, plan = cost.full(args)
    hourly = (asked.price(plan.replica.device) or 0.0) * plan.replica.num_devices
    return name, plan.label, hourly, certainty.predicted("rate", asked.shape, plan.most.requests_per_s)


def _print(found: dict[str, Any]) -> None:
    rate, usage = found["requests_per_s"], found["utilization"]
    what = "devices" if found["model"] is None else f"{found['model']} on [{found['layout']}]"
    spread = f" ({rate['low']:.2f} .. {rate['high']:.2f})" if "low" in rate else ""
    print(f"{what}: ${found['usd_per_hour']:.2f} an hour, {rate['value']:.2f} requests/s{spread} when full")
    print(f"the API asks ${found['api_usd_per_request']:.6f} for such a request\n")
    rows = [
        (f"{float(share):.0%}", f"${usd:.6f}", f"{usd / found['api_usd_per_request']:.2f}")
        for share, usd in found["usd_per_request"].items()
    ]
    output.print_table(["in use", "a request", "of the API's"], rows, right=[0, 1, 2])
    value = usage["value"] if isinstance(usage, dict) else usage
    band = f" ({usage['low']:.0%} .. {usage['high']:.0%})" if isinstance(usage, dict) else ""
    print(
        f"\neven at {found['requests_per_hour']:.0f} requests an hour, {found['tokens_per_hour'] / 1e6:.2f} M tokens: "
        f"{value:.1%}{band} in use"
    )
    print(
        "own devices cost less above that"
        if found["pays"]
        else "own devices never cost less: that is above full"
    )
