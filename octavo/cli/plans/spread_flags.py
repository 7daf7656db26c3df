"""Flags that plans of any shape share: how it is stored, how it is spread, on what."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from octavo.errors import ConfigError
from octavo.units import parse_count

if TYPE_CHECKING:
    from octavo.arch.shape import Shape
    from octavo.planner.formats import WeightFormat
    from octavo.planner.kv_layouts import KvLayout
    from octavo.planner.parallel import Parallel

RANKS = ("tensor", "pipeline", "data", "expert")


def add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model",
        nargs="?",
        metavar="MODEL",
        help="config.json, folder, well-known name, bundled name or hub id",
    )


def add_storage(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--weights", metavar="FORMAT", help="such as bf16, fp8, int4-g128 [as published, or bf16]"
    )
    parser.add_argument("--kv", metavar="LAYOUT", help="bf16, fp8, int8 or int4 [bf16]")


def add_ranks(parser: argparse._ActionsContainer) -> None:
    for name, text in (
        ("tensor", "ranks that share each matrix"),
        ("pipeline", "stages of layers"),
        ("data", "groups that attend for themselves and share experts"),
        ("expert", "ranks that hold whole experts: 1, or tensor x data"),
    ):
        parser.add_argument(f"--{name}-parallel", type=int, metavar="RANKS", help=f"{text} [1]")


def weights(args: argparse.Namespace, shape: Shape) -> WeightFormat:
    """As asked, else as the checkpoint is published where that is a known format, else bf16. Raises ConfigError."""
    from octavo.planner.formats import FORMATS, weight_format

    if args.weights is not None:
        return weight_format(args.weights)
    return FORMATS[shape.stored if shape.stored in FORMATS else "bf16"]


def layout(args: argparse.Namespace) -> KvLayout:
    """Raises ConfigError."""
    from octavo.planner.kv_layouts import kv_layout

    return kv_layout("bf16" if args.kv is None else args.kv)


def parallel(args: argparse.Namespace) -> Parallel:
    """Raises ConfigError."""
    from octavo.planner.parallel import Parallel

    given = {name: getattr(args, f"{name}_parallel") for name in RANKS}
    return Parallel(**{name: value for name, value in given.items() if value is not None})


def count(flag: str, text: str | None, default: int, *, low: int = 1) -> int:
    """A number of tokens, sequences or ranks. Raises ConfigError."""
    value = default if text is None else parse_count(text)
    if value < low:
        raise ConfigError(f"{flag} must be at least {low}, got {value}")
    return value
