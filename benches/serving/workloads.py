"""How fast does the engine serve W1 to W5 on this machine, and how near does that come to the machine's limits?

W1 and W2 show one request's decoding and prompt speed, with their share of the memory's and the matrix units'
rate; W3 to W5 show throughput. Peak memory stands beside every figure.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from benches import harness
from benches.harness import Bench, GateFailed, Settings
from benches.record import slug
from benches.serving.shares import decode_read_bytes, prompt_flop
from benches.workloads import SHAPES, Shape, shapes
from octavo import LLM, SamplingParams
from octavo.arch import Arch
from octavo.config import QUANTIZATION
from octavo.engine.locate import locate
from octavo.engine.measure import Generates, MachineLimits, Run, measure_machine, random_prompts, run_requests
from octavo.engine.outputs import RequestOutput
from octavo.errors import OctavoError

CONFIGS = Path(__file__).parent.parent / "shapes"
BLOCK_TOKENS = 16
MAX_NUM_SEQS = 32
GATE_SIZES = (97, 24, 50)
GATE_TOKENS = 6

_FIGURES = {
    "W1": ("decode_tokens_per_s", "decode at batch 1"),
    "W2": ("prompt_tokens_per_s", "read one long prompt"),
    "W3": ("output_tokens_per_s", "answer 32 mixed requests"),
    "W4": ("output_tokens_per_s", "answer 32 requests with a common prefix"),
    "W5": ("output_tokens_per_s", "answer 8 long prompts"),
}

Rates = Callable[[Run], Mapping[str, float]]


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(prog="python -m benches.serving.workloads", description=__doc__)
    parser.add_argument(
        "--model",
        default="quire",
        help=f"a bundled model, {', '.join(shape_names())} (random weights), a config.json or a folder",
    )
    parser.add_argument("--workloads", default=",".join(SHAPES), help="comma separated (default %(default)s)")
    parser.add_argument(
        "--dtype", default="auto", help="of weights and activations (default: the model's own)"
    )
    parser.add_argument("--quantization", choices=QUANTIZATION, help="round the layers' weights at load")
    harness.arguments(parser)
    args = parser.parse_args(words)
    settings = harness.settings(args, "benches.serving.workloads", words)
    try:
        return serve(args.model, args.workloads.split(","), args.dtype, settings, args.quantization)
    except OctavoError as error:
        print(f"{error} [{error.code}]", file=sys.stderr)
        return 2


def serve(
    model: str, names: Sequence[str], dtype: str, settings: Settings, quantization: str | None = None
) -> int:
    """Load a model once and ask the question for each workload. Returns the exit code."""
    source = str(CONFIGS / f"{model}.json") if model in shape_names() else model
    shapes(names)  # an unknown id is told before a model is looked for
    location = locate(source)
    arch = Arch.from_file(location.config)
    chosen = shapes(names, arch.max_positions)
    limits = measure_machine(settings.threads)
    blocks = max(shape.num_blocks(BLOCK_TOKENS) + len(shape.sizes) for shape in chosen)
    longest = max(*(shape.longest for shape in chosen), max(GATE_SIZES) + GATE_TOKENS)
    with LLM(
        source,
        dtype=dtype,
        quantization=quantization,
        max_model_len=longest,
        max_num_seqs=MAX_NUM_SEQS,
        num_kv_blocks=max(blocks, -(-longest // BLOCK_TOKENS)) + 1,
        block_size=BLOCK_TOKENS,
        num_threads=settings.threads,
    ) as llm:
        resolved = llm.built.plan.resolved
        notes = [
            "weights are random" if location.is_random else f"weights of {location.name}",
            f"kernels: {', '.join(sorted({f'{one.op} {one.impl}' for one in llm.built.model.decisions}))}",
            f"{resolved.limits.num_blocks} KV blocks of {BLOCK_TOKENS} tokens,"
            f" {resolved.limits.max_num_batched_tokens} tokens in a step at most",
        ]
        check = functools.cache(functools.partial(gate, llm, arch.vocab_size))
        benches = [
            bench(llm, location.name, shape, resolved.dtype, arch, limits, check, notes, quantization)
            for shape in chosen
        ]
        return harness.ask(benches, settings, limits)


def shape_names() -> list[str]:
    """Model shapes that need no download, for random weights."""
    return sorted(path.stem for path in CONFIGS.glob("*.json"))


def bench(
    llm: Generates,
    model: str,
    shape: Shape,
    dtype: str,
    arch: Arch,
    limits: MachineLimits,
    check: Callable[[], str],
    notes: Sequence[str],
    quantization: str | None = None,
) -> Bench:
    """The question of one workload on a loaded model, behind `check`, which may serve several of them."""
    figure, what = _FIGURES[shape.id]
    rates = _rates(shape, dtype, quantization, arch, limits)
    format = f"{quantization} and {dtype}" if quantization else dtype

    def subject(repeat: int) -> Mapping[str, float]:
        size = shape if repeat >= 0 else shape.warmup()
        jobs = size.jobs(arch.vocab_size, repeat)
        run = run_requests(llm, [job.prompt for job in jobs], [job.num_output_tokens for job in jobs])
        return {**(rates(run) if repeat >= 0 else {}), **_beside(run)}

    return Bench(
        question=f"{shape.id}: how fast does {model} {what}, in {format} on {limits.num_threads} threads?",
        slug=slug(f"serving {shape.id} {model} {quantization or dtype}"),
        figure=figure,
        unit="tok/s",
        better="higher",
        shape={
            "workload": shape.id,
            "model": model,
            "dtype": dtype,
            "quantization": quantization or "none",
            "requests": len(shape.sizes),
            "prompt_tokens": shape.num_prompt_tokens,
            "output_tokens": shape.num_output_tokens,
            "shared_tokens": shape.shared_tokens,
        },
        gate=check,
        subjects={"octavo": subject},
        seeds={"prompts": f"'{shape.id} REPEAT', repeats counted from 0", "weights": 0},
        notes=[*shape.notes, *notes],
    )


def gate(llm: Generates, vocab_size: int) -> str:
    """Answers must be the same bits alone and in company. Raises GateFailed."""
    prompts = [{"prompt_token_ids": ids} for ids in random_prompts(GATE_SIZES, vocab_size, "gate")]
    params = SamplingParams(temperature=0.0, max_tokens=GATE_TOKENS, ignore_eos=True, logprobs=1)
    together = llm.generate(prompts, [params] * len(prompts))
    alone = [llm.generate([prompt], [params])[0] for prompt in prompts]
    for size, ours, theirs in zip(GATE_SIZES, map(_answer, alone), map(_answer, together), strict=True):
        if ours != theirs:
            raise GateFailed(f"a prompt of {size} tokens gave {ours} alone and {theirs} in company")
    cached = sum(output.metrics.cached_prompt_tokens for output in alone)
    return (
        f"{len(prompts)} greedy answers have equal tokens and log-probabilities together and alone,"
        f" then with {cached} of {sum(GATE_SIZES)} prompt tokens from the cache"
    )


def _answer(output: RequestOutput) -> tuple[object, object]:
    return output.outputs[0].token_ids, output.outputs[0].logprobs


def _rates(shape: Shape, dtype: str, quantization: str | None, arch: Arch, limits: MachineLimits) -> Rates:
    """The workload's own figures, the one that answers first."""
    if shape.id == "W1":
        read_bytes = decode_read_bytes(arch, dtype, quantization)

        def decoding(run: Run) -> Mapping[str, float]:
            (one,) = run.requests
            assert one.tpot_s is not None, "W1 draws more than one token"
            rate = 1 / one.tpot_s
            share = read_bytes * rate / limits.read_bytes_per_s
            return {"decode_tokens_per_s": rate, "weight_read_share": share}

        return decoding
    if shape.id == "W2":
        matrix_per_s = limits.flop_per_s(quantization or dtype)

        def reading(run: Run) -> Mapping[str, float]:
            (one,) = run.requests
            figures = {"prompt_tokens_per_s": one.num_prompt_tokens / one.ttft_s}
            if matrix_per_s is not None:
                flop = prompt_flop(arch, one.num_prompt_tokens)
                figures["matrix_share"] = flop / one.ttft_s / matrix_per_s
            return figures

        return reading
    return lambda run: {
        "output_tokens_per_s": run.output_tokens_per_s,
        "total_tokens_per_s": run.total_tokens_per_s,
    }


def _beside(run: Run) -> Mapping[str, float]:
    return {
        "ttft_s": statistics.median(one.ttft_s for one in run.requests),
        "wall_s": run.wall_s,
        "peak_bytes": run.peak_bytes,
        "cached_prompt_tokens": sum(one.num_cached_prompt_tokens for one in run.requests),
        "preemptions": sum(one.num_preemptions for one in run.requests),
    }


if __name__ == "__main__":
    sys.exit(main())
