"""What does company cost? Decoding by the number of sequences, long contexts beside the bytes they must read, and a
common prefix beside the work that is left when it is read once.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence

from benches import harness
from benches.harness import Bench, Settings, Subject
from benches.record import slug
from benches.serving.shares import decode_read_bytes
from benches.serving.workloads import BLOCK_TOKENS, CONFIGS, GATE_SIZES, GATE_TOKENS, gate, shape_names
from octavo import LLM
from octavo.arch import Arch
from octavo.config import QUANTIZATION
from octavo.engine.locate import locate
from octavo.engine.measure import Generates, MachineLimits, Run, measure_machine, random_prompts, run_requests
from octavo.errors import OctavoError
from octavo.planner.memory import kv_block_bytes

COUNTS = (1, 2, 4, 8, 16, 32)
SHORT_PROMPT, SHORT_OUTPUT = 16, 33
LONG_PROMPT, LONG_OUTPUT, LONG_COUNT = 2048, 17, 8
PREFIX, OWN, ANSWER = 1024, 32, 32


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(prog="python -m benches.serving.scaling", description=__doc__)
    parser.add_argument(
        "--model", default="quire", help=f"a bundled model, {', '.join(shape_names())}, or a folder"
    )
    parser.add_argument(
        "--questions", default=",".join(QUESTIONS), help="comma separated (default %(default)s)"
    )
    parser.add_argument("--quantization", choices=QUANTIZATION, help="round the layers' weights at load")
    parser.add_argument("--requests", type=int, default=32, help="that share a prefix (default %(default)s)")
    harness.arguments(parser)
    args = parser.parse_args(words)
    unknown = set(args.questions.split(",")) - set(QUESTIONS)
    if unknown or args.requests < 2:
        parser.error(f"questions are {', '.join(QUESTIONS)}, and a prefix is shared by 2 requests or more")
    settings = harness.settings(args, "benches.serving.scaling", words)
    try:
        return serve(args.model, args.questions.split(","), args.quantization, args.requests, settings)
    except OctavoError as error:
        print(f"{error} [{error.code}]", file=sys.stderr)
        return 2


def serve(
    model: str, questions: Sequence[str], quantization: str | None, num_requests: int, settings: Settings
) -> int:
    """Load a model once and ask. Returns the exit code."""
    location = locate(str(CONFIGS / f"{model}.json") if model in shape_names() else model)
    arch = Arch.from_file(location.config)
    limits = measure_machine(settings.threads)
    long_prompt = min(LONG_PROMPT, arch.max_positions - LONG_OUTPUT)
    prefix = min(PREFIX, (arch.max_positions - OWN - ANSWER) // BLOCK_TOKENS * BLOCK_TOKENS)
    longest = max(long_prompt + LONG_OUTPUT, prefix + OWN + ANSWER, max(GATE_SIZES) + GATE_TOKENS)
    num_tokens = max(
        LONG_COUNT * (long_prompt + LONG_OUTPUT), prefix + num_requests * (OWN + ANSWER + BLOCK_TOKENS)
    )
    with LLM(
        str(location.config) if location.is_random else model,
        quantization=quantization,
        max_model_len=longest,
        max_num_seqs=max(COUNTS),
        num_kv_blocks=max(num_tokens, longest) // BLOCK_TOKENS + 2 * max(COUNTS),
        block_size=BLOCK_TOKENS,
        num_threads=settings.threads,
    ) as llm:
        resolved = llm.built.plan.resolved
        read_bytes = decode_read_bytes(arch, resolved.dtype, quantization)
        token_bytes = kv_block_bytes(arch, resolved.dtype, BLOCK_TOKENS, resolved.isa) // BLOCK_TOKENS
        asks: dict[str, Subject] = {
            "growth": functools.partial(growth, llm, arch.vocab_size),
            "context": functools.partial(
                context, llm, arch.vocab_size, long_prompt, read_bytes, token_bytes, limits.read_bytes_per_s
            ),
            "prefix": functools.partial(prefix_hits, llm, arch.vocab_size, prefix, num_requests),
        }
        check = functools.cache(functools.partial(gate, llm, arch.vocab_size))
        shape = {
            "model": location.name,
            "dtype": resolved.dtype,
            "quantization": quantization or "none",
            "context_tokens": long_prompt,
            "prefix_tokens": prefix,
            "requests": num_requests,
        }
        benches = [bench(name, asks[name], shape, check, limits) for name in questions]
        return harness.ask(benches, settings, limits)


QUESTIONS = {
    "growth": (f"how many times faster are {max(COUNTS)} sequences than one", "times_one", "higher"),
    "context": (f"how near to its bytes is a step of {LONG_COUNT} long contexts", "times_floor", "lower"),
    "prefix": ("how much of what skipped prefill implies do prefix hits give", "share", "higher"),
}


def bench(
    name: str, ask: Subject, shape: Mapping[str, object], check: Callable[[], str], limits: MachineLimits
) -> Bench:
    what, figure, better = QUESTIONS[name]
    format = shape["dtype"] if shape["quantization"] == "none" else shape["quantization"]
    return Bench(
        question=f"{shape['model']} in {format}: {what}, on {limits.num_threads} threads?",
        slug=slug(f"scaling {name} {shape['model']} {format}"),
        figure=figure,
        unit="times" if name != "prefix" else "share",
        better=better,
        shape=shape,
        gate=check,
        subjects={"octavo": ask},
        seeds={"prompts": "question and repeat", "weights": 0},
    )


def growth(llm: Generates, vocab_size: int, repeat: int) -> Mapping[str, float]:
    """Tokens per second of decoding alone, by the number of sequences, and the last over the first."""
    rates = {
        count: _decode_rate(
            _run(llm, vocab_size, [SHORT_PROMPT] * count, SHORT_OUTPUT, f"growth {repeat} {count}")
        )
        for count in COUNTS
    }
    return {
        "times_one": rates[max(COUNTS)] / rates[1],
        **{f"decode_tokens_per_s_{count}": rate for count, rate in rates.items()},
    }


def context(
    llm: Generates,
    vocab_size: int,
    prompt: int,
    read_bytes: int,
    token_bytes: int,
    bytes_per_s: float,
    repeat: int,
) -> Mapping[str, float]:
    """A step with all contexts in it, over the time that reading weights and keys and values takes."""
    prompts = random_prompts([prompt] * LONG_COUNT, vocab_size, f"context {repeat}")
    run_requests(llm, prompts, [1] * LONG_COUNT)  # now they lie in the cache, and all decode side by side
    run = run_requests(llm, prompts, [LONG_OUTPUT] * LONG_COUNT)
    step_s = LONG_COUNT / _decode_rate(run)
    step_bytes = read_bytes + LONG_COUNT * (prompt + LONG_OUTPUT // 2) * token_bytes
    return {"times_floor": step_s * bytes_per_s / step_bytes, "step_s": step_s, "step_bytes": step_bytes}


def prefix_hits(llm: Generates, vocab_size: int, prefix: int, count: int, repeat: int) -> Mapping[str, float]:
    """All requests at once and nothing cached, beside the prefix alone and then the requests on top of it."""
    apart, together = (
        random_prompts([prefix], vocab_size, f"prefix {repeat} {kind}")[0] for kind in ("a", "t")
    )
    own = random_prompts([OWN] * count, vocab_size, f"own {repeat}")
    alone = run_requests(llm, [apart], [1])
    on_top = run_requests(llm, [[*apart, *one] for one in own], [ANSWER] * count)
    at_once = run_requests(llm, [[*together, *one] for one in own], [ANSWER] * count)
    implied_s = alone.wall_s + on_top.wall_s
    return {
        "share": implied_s / at_once.wall_s,
        "output_tokens_per_s": at_once.output_tokens_per_s,
        "implied_tokens_per_s": at_once.num_output_tokens / implied_s,
        "cached_prompt_tokens": sum(one.num_cached_prompt_tokens for one in at_once.requests),
    }


def _run(llm: Generates, vocab_size: int, prompts: Sequence[int], output: int, seed: str) -> Run:
    return run_requests(llm, random_prompts(prompts, vocab_size, seed), [output] * len(prompts))


def _decode_rate(run: Run) -> float:
    """Of requests that decode side by side from the first token on."""
    return len(run.requests) / statistics.median(one.tpot_s for one in run.requests if one.tpot_s is not None)


if __name__ == "__main__":
    sys.exit(main())
