"""Flags that say how tokens are chosen, for the commands that generate."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from octavo.core.sequence import SamplingParams

DEFAULT_MAX_TOKENS = 256


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Greedy decoding unless a temperature is given; `--seed` belongs to the settings and keys the draws."""
    group = parser.add_argument_group("sampling")

    def add(flag: str, kind: Callable[[str], Any], default: Any, text: str) -> None:
        shown = "" if default is None else f" [default {default}]"
        group.add_argument(flag, type=kind, default=default, metavar=kind.__name__.upper(), help=text + shown)

    add("--max-tokens", int, DEFAULT_MAX_TOKENS, "longest answer")
    add("--min-tokens", int, 0, "no end before so many")
    add("--temperature", float, 0.0, "0 takes the likeliest token")
    add("--top-p", float, 1.0, "smallest set of tokens with this probability")
    add("--top-k", int, 0, "likeliest tokens kept; 0 keeps all")
    add("--min-p", float, 0.0, "drop tokens less likely than this share of the likeliest")
    add("--presence-penalty", float, 0.0, "against tokens that have occurred")
    add("--frequency-penalty", float, 0.0, "against tokens, per occurrence")
    add("--repetition-penalty", float, 1.0, "divides logits of tokens that have occurred")
    group.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="ends the answer; repeatable"
    )
    group.add_argument("--ignore-eos", action="store_true", help="go on past the model's end token")
    add("--n", int, 1, "answers per prompt")
    add("--beam-width", int, None, "search so many beams instead of sampling")


def read(args: argparse.Namespace, **more: Any) -> SamplingParams:
    """Raises RequestError for a value out of range. `more` goes before the flags."""
    fields: dict[str, Any] = {
        name: getattr(args, name)
        for name in (
            "max_tokens", "min_tokens", "temperature", "top_p", "top_k", "min_p", "presence_penalty",
            "frequency_penalty", "repetition_penalty", "ignore_eos", "n", "beam_width",
        )
    }  # fmt: skip
    return SamplingParams(**fields | {"stop": tuple(args.stop)} | more)
