"""Where does the time of a step go? Shares of a prompt, of one sequence decoding, and of long contexts decoding side by
side, by kind of operation of the compiled program.
"""

from __future__ import annotations

import argparse
import functools
import sys
import time
from collections.abc import Mapping, Sequence

from benches import harness
from benches.harness import Bench, Settings
from benches.record import slug
from benches.serving.workloads import BLOCK_TOKENS, CONFIGS, GATE_SIZES, GATE_TOKENS, gate, shape_names
from octavo import LLM
from octavo.arch import Arch
from octavo.config import QUANTIZATION
from octavo.engine.locate import locate
from octavo.engine.measure import measure_machine, random_prompts, run_requests
from octavo.errors import OctavoError
from octavo.models.native import NativeModel

PROMPT, OUTPUT, LONG_COUNT = 2048, 17, 8


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(prog="python -m benches.serving.where", description=__doc__)
    parser.add_argument(
        "--model", default="quire", help=f"a bundled model, {', '.join(shape_names())}, or a folder"
    )
    parser.add_argument("--quantization", choices=QUANTIZATION, help="round the layers' weights at load")
    harness.arguments(parser)
    args = parser.parse_args(words)
    settings = harness.settings(args, "benches.serving.where", words)
    try:
        return serve(args.model, args.quantization, settings)
    except OctavoError as error:
        print(f"{error} [{error.code}]", file=sys.stderr)
        return 2


def serve(model: str, quantization: str | None, settings: Settings) -> int:
    """Load a model once and ask. Returns the exit code."""
    location = locate(str(CONFIGS / f"{model}.json") if model in shape_names() else model)
    arch = Arch.from_file(location.config)
    limits = measure_machine(settings.threads)
    prompt = min(PROMPT, arch.max_positions - OUTPUT)
    longest = max(prompt + OUTPUT, max(GATE_SIZES) + GATE_TOKENS)
    with LLM(
        str(location.config) if location.is_random else model,
        quantization=quantization,
        max_model_len=longest,
        max_num_seqs=LONG_COUNT,
        num_kv_blocks=LONG_COUNT * (longest // BLOCK_TOKENS + 2),
        block_size=BLOCK_TOKENS,
        num_threads=settings.threads,
    ) as llm:
        compiled = llm.built.model
        if not isinstance(compiled, NativeModel):
            print("this model runs on plain torch here: octavo config --resolve says why", file=sys.stderr)
            return 2
        resolved = llm.built.plan.resolved
        format = quantization or resolved.dtype
        works = {"prompt": (1, prompt, 1), "one": (1, 16, OUTPUT), "long": (LONG_COUNT, prompt, OUTPUT)}
        bench = Bench(
            question=f"{location.name} in {format}: where does a step's time go, on {limits.num_threads} threads?",
            slug=slug(f"where {location.name} {format}"),
            figure="in_products",
            unit="share",
            better="higher",
            shape={
                "model": location.name,
                "dtype": resolved.dtype,
                "quantization": quantization or "none",
                **{
                    name: f"{count} of {tokens} + {output} tokens"
                    for name, (count, tokens, output) in works.items()
                },
            },
            gate=lambda: gate(llm, arch.vocab_size),
            subjects={
                name: functools.partial(shares, llm, compiled, arch.vocab_size, *work)
                for name, work in works.items()
            },
            seeds={"prompts": "subject and repeat", "weights": 0},
            notes=["prompts of subjects that decode lie in the cache before time is taken"],
        )
        return harness.ask([bench], settings, limits)


def shares(
    llm: LLM, model: NativeModel, vocab_size: int, count: int, prompt: int, output: int, repeat: int
) -> Mapping[str, float]:
    """Parts of the wall time, by kind of operation; `outside` is what is not in the program at all."""
    prompts = random_prompts([prompt] * count, vocab_size, f"where {count} {prompt} {output} {repeat}")
    if output > 1:
        run_requests(llm, prompts, [1] * count)
    before, start = model.seconds(), time.perf_counter()
    run_requests(llm, prompts, [output] * count)
    wall_s = time.perf_counter() - start
    spent = {kind: seconds - before.get(kind, 0.0) for kind, seconds in model.seconds().items()}
    is_product = {kind: kind == "head" or kind.startswith("linear") for kind in spent}
    return {
        "in_products": sum(spent[kind] for kind in spent if is_product[kind]) / wall_s,
        **{f"in_{kind}": spent[kind] / wall_s for kind in sorted(spent) if not is_product[kind]},
        "outside": 1 - sum(spent.values()) / wall_s,
        "wall_s": wall_s,
    }


if __name__ == "__main__":
    sys.exit(main())
