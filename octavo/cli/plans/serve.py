"""Which precision, KV layout, spread and batch serve a load within its limits, and at what cost.

octavo plan serve llama-3.1-70b --devices h100,h200 --prompt-tokens 2000 --output-tokens 300 --rate 20 --tpot 50ms
octavo plan serve owner/name --devices b200 --prompt-tokens 1000 --output-tokens 1000 --concurrency 256
octavo plan serve MODEL ... --weights bf16,fp8 --kv bf16,fp8 --max-ranks 16 --price h100=2.5

Layouts are ranked by dollars for a million tokens of answers, all costs on them; each that lost says why. TTFT and TPOT
are those of a steady load on the scheduler's own terms: chunked prompts between decodes, nothing split off.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from octavo.cli import output
from octavo.cli.plans import models, spread_flags
from octavo.errors import ConfigError
from octavo.units import parse_count, parse_seconds

if TYPE_CHECKING:
    from octavo.arch.shape import Shape
    from octavo.planner.capacity import Load
    from octavo.planner.formats import WeightFormat
    from octavo.planner.hardware import Device
    from octavo.planner.kv_layouts import KvLayout
    from octavo.planner.layouts import Ask


def configure(parser: argparse.ArgumentParser) -> None:
    spread_flags.add_model(parser)
    add_load(parser)
    add_layouts(parser)
    parser.add_argument("--rate", type=float, metavar="PER_S", help="requests that arrive in a second")
    parser.add_argument(
        "--concurrency", type=float, metavar="REQUESTS", help="instead: at once, each followed by one"
    )
    parser.add_argument("--top", type=int, metavar="N", default=5, help="layouts shown [5]; --json has all")
    output.add_json(parser)


def add_layouts(parser: argparse.ArgumentParser) -> None:
    """Flags of what may be chosen, and of how well it must serve."""
    parser.add_argument("--ttft", metavar="TIME", help="limit of the first token, such as 500ms")
    parser.add_argument("--tpot", metavar="TIME", help="limit between tokens, such as 40ms")
    parser.add_argument("--percentile", type=float, metavar="P", help="of requests that keep them [the mean]")
    layouts = parser.add_argument_group("layouts")
    layouts.add_argument("--devices", metavar="NAME,...", default="h100", help="to choose from [h100]")
    layouts.add_argument(
        "--weights", metavar="FORMAT,...", help="such as bf16,fp8,int4-g128 [as published, and fp8]"
    )
    layouts.add_argument("--kv", metavar="LAYOUT,...", default="bf16,fp8", help="[bf16,fp8]")
    layouts.add_argument("--max-ranks", type=int, metavar="N", help="devices of a replica [those of a node]")
    layouts.add_argument("--budget", metavar="TOKENS,...", default="8192", help="of a step [8192]")
    layouts.add_argument("--max-seqs", type=int, metavar="N", default=1024, help="in a step [1024]")
    layouts.add_argument("--front-end", metavar="TIME", help="of a first token beside the steps [as vLLM's]")
    layouts.add_argument(
        "--price", action="append", default=[], metavar="DEVICE=USD", help="dollars a device and hour"
    )


def add_load(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    parser.add_argument(
        "--prompt-tokens", metavar="TOKENS", required=required, help="of a request, on average"
    )
    parser.add_argument("--output-tokens", metavar="TOKENS", required=required, help="of its answer")
    parser.add_argument(
        "--cached-tokens", metavar="TOKENS", default="0", help="of the prompt, found in a cache [0]"
    )


def run(args: argparse.Namespace) -> int:
    from octavo.cli.plans import serve_output
    from octavo.planner.ranking import rank, relax
    from octavo.planner.split import split

    name, shape = models.find(args.model)
    asked = ask(args, shape)
    made = rank(asked)
    relaxed = [] if made.plans else relax(asked)
    pools = (
        split(made.plans[0].replica, asked.load, asked.slo, asked.front_end_s(0.0)) if made.plans else None
    )
    if args.json:
        output.print_json(serve_output.as_json(name, asked, made, relaxed, pools))
    else:
        serve_output.show(name, asked, made, relaxed, pools, args.top)
    return 0 if made.plans else 1


def load(args: argparse.Namespace) -> Load:
    """Raises ConfigError."""
    from octavo.planner.capacity import Load

    return Load(
        prompt_tokens=parse_count(args.prompt_tokens),
        output_tokens=parse_count(args.output_tokens),
        cached_tokens=parse_count(args.cached_tokens),
    )


def ask(args: argparse.Namespace, shape: Shape) -> Ask:
    """The question the flags put. Raises ConfigError."""
    from octavo.planner.front_end import FRONT_ENDS, FrontEnd
    from octavo.planner.layouts import Ask
    from octavo.planner.slo import Slo

    if args.rate is None and args.concurrency is None:
        raise ConfigError("octavo plan serve needs --rate or --concurrency")
    return Ask(
        shape=shape,
        devices=devices(args.devices),
        weights=_weights(args.weights, shape),
        kvs=_kvs(args.kv),
        load=load(args),
        slo=Slo(
            ttft_s=None if args.ttft is None else parse_seconds(args.ttft),
            tpot_s=None if args.tpot is None else parse_seconds(args.tpot),
            percentile=args.percentile,
        ),
        requests_per_s=args.rate,
        concurrency=args.concurrency,
        max_ranks=args.max_ranks,
        budgets=tuple(parse_count(word) for word in args.budget.split(",")),
        max_seqs=args.max_seqs,
        front_end=FRONT_ENDS["vllm"]
        if args.front_end is None
        else FrontEnd(request_s=parse_seconds(args.front_end)),
        prices=prices(args.price),
    )


def devices(text: str) -> tuple[Device, ...]:
    """Raises ConfigError that lists what there is."""
    from octavo.planner.hardware import device

    return tuple(device(word.strip()) for word in text.split(",") if word.strip())


def prices(words: list[str]) -> dict[str, float]:
    """`["h100=2.5"]` by the device's name in the table. Raises ConfigError."""
    from octavo.planner.hardware import device

    found = {}
    for word in words:
        name, equals, value = word.partition("=")
        try:
            price = float(value)
        except ValueError:
            price = -1.0
        if not equals or not price > 0:
            raise ConfigError(
                f"--price {word!r} is not a device and dollars above 0; write it such as h100=2.5"
            )
        found[device(name).name] = price
    return found


def _weights(text: str | None, shape: Shape) -> tuple[WeightFormat, ...]:
    from octavo.planner.formats import FORMATS, weight_format

    if text is not None:
        return tuple(weight_format(word.strip()) for word in text.split(","))
    published = shape.stored if shape.stored in FORMATS else "bf16"
    return tuple(FORMATS[name] for name in dict.fromkeys((published, "fp8")))


def _kvs(text: str) -> tuple[KvLayout, ...]:
    from octavo.planner.kv_layouts import kv_layout

    return tuple(kv_layout(word.strip()) for word in text.split(","))
