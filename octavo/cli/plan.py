"""Arithmetic before anything is loaded or bought."""

from __future__ import annotations

import argparse
import importlib

PLANS = {
    "memory": "bytes for weights, KV cache and workspace; of any shape, on any device, in training",
    "flops": "arithmetic of a prompt, a token and training, by part, and the device's roofline",
    "comm": "bytes and seconds on links for every way to spread a model",
    "block": "a layer operation by operation: shapes, FLOPs, bytes, what bounds each",
    "train": "time and money to train, and how well the compute is split",
    "serve": "which layout serves a load within its limits, at what cost, and why the others lost",
    "cost": "dollars for tokens of each kind, by utilisation",
    "break-even": "from what load on devices of one's own cost less than an API",
    "design": "from compute to parameters, tokens and a shape, with or without serving",
}
"""Kind of plan -> what it answers; `octavo.cli.plans` has a module of that name, dashes read as underscores."""


def configure(parser: argparse.ArgumentParser) -> None:
    width = max(map(len, PLANS))
    parser.usage = "octavo plan KIND [MODEL] [FLAGS]"
    parser.epilog = "kinds:\n" + "\n".join(f"  {name:{width}}  {text}" for name, text in PLANS.items())
    parser.epilog += "\n\n`octavo plan KIND --help` shows a kind's flags."
    parser.add_argument("kind", choices=PLANS, metavar="KIND", help="see below")
    parser.add_argument("words", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> int:
    module = importlib.import_module("octavo.cli.plans." + args.kind.replace("-", "_"))
    parser = argparse.ArgumentParser(
        prog=f"octavo plan {args.kind}",
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    module.configure(parser)
    code: int = module.run(parser.parse_args(args.words))
    return code
