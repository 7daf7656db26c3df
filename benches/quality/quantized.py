"""What does rounding a model's weights at load cost in quality?

The bundled model in its own numbers, in int8, in int4, and in int4 with activations left in bfloat16: perplexity of the
held-out texts, and exact answers to questions about the standard library. Every subject is asked the same.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

import msgspec

from benches import harness
from benches.harness import Bench, Figures, GateFailed

FORMATS = ("none", "int8", "int4", "w4a16")


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(prog="python -m benches.quality.quantized", description=__doc__)
    parser.add_argument("--limit", type=int, default=500, help="questions asked (default %(default)s)")
    harness.arguments(parser)
    parser.set_defaults(repeats=1, warmup=0)  # the same every time: nothing here is drawn at random
    args = parser.parse_args(words)
    return harness.ask([bench(args.limit)], harness.settings(args, "benches.quality.quantized", words))


def bench(limit: int) -> Bench:
    return Bench(
        question="What does rounding quire's weights at load cost in quality?",
        slug="quality quantized quire".replace(" ", "-"),
        figure="perplexity",
        unit="perplexity",
        better="lower",
        shape={"window_tokens": 1024, "questions": limit},
        gate=_gate,
        subjects={format: partial(quality, format, limit) for format in FORMATS},
        notes=[
            "layers in the named format; the head and the tied embedding in int8 in all; norms in bfloat16"
        ],
    )


def quality(format: str, limit: int, repeat: int) -> Figures:
    """Perplexity, and the share of questions answered exactly, with weights in a format. `repeat` changes nothing."""
    del repeat
    texts = _eval(format, "--task", "perplexity")
    answers = _eval(format, "--task", "stdlib-qa", "--limit", str(limit))
    return {
        "perplexity": texts["perplexity"],
        "bits_per_byte": texts["bits_per_byte"],
        "stdlib_qa_share": answers["right"] / answers["count"],
    }


def _gate() -> str:
    """Raises GateFailed unless compiled kernels and the reference agree on the plain weights."""
    few = ("--task", "perplexity", "--limit", "2")
    ours, reference = _eval("none", *few), _eval("none", *few, "--kernels", "reference")
    if abs(ours["perplexity"] / reference["perplexity"] - 1) > 0.005:
        raise GateFailed(f"perplexity {ours['perplexity']} compiled, {reference['perplexity']} reference")
    return "perplexity of two texts, compiled kernels against the torch reference, within 0.5 %"


def _eval(format: str, *arguments: str) -> dict[str, Any]:
    start = "import sys; from octavo.cli.main import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", start, "eval", *arguments, "--quantization", format, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise GateFailed(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "eval failed")
    found: dict[str, Any] = msgspec.json.decode(done.stdout)
    return found


if __name__ == "__main__":
    sys.exit(main())
