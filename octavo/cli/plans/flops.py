"""FLOPs of a prompt, of a token after it, and of training, by part; and where the device's roofline lies.

octavo plan flops MODEL --prompt-tokens 2048 --context 4096
octavo plan flops MODEL --device h100 --batch 32        bytes, intensity and the time no device can beat
octavo plan flops MODEL --by-layer                      each kind of layer by itself

One multiplication or addition is one FLOP. Prompts see what lies before each token (causal); the head runs on the last
row of a prompt and on every token in training.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from octavo.cli import output
from octavo.cli.plans import spread_flags
from octavo.units import format_bytes, format_count, format_seconds

if TYPE_CHECKING:
    from octavo.arch.shape import Shape
    from octavo.planner.flops import Flops


def configure(parser: argparse.ArgumentParser) -> None:
    spread_flags.add_model(parser)
    parser.add_argument("--prompt-tokens", metavar="COUNT", help="length of a prompt [2048]")
    parser.add_argument("--cached-tokens", metavar="COUNT", help="of it, found in the prefix cache [0]")
    parser.add_argument("--context", metavar="COUNT", help="positions a decode token sees [4096]")
    parser.add_argument("--training-tokens", metavar="COUNT", help="of a training sequence [4096]")
    parser.add_argument(
        "--recompute", choices=["none", "selective", "full"], default="none", help="in training [none]"
    )
    parser.add_argument(
        "--absorbed", action="store_true", help="latent attention compares with latents, as in decoding"
    )
    parser.add_argument("--by-layer", action="store_true", help="each kind of layer by itself")
    parser.add_argument(
        "--device", metavar="NAME", help="such as h100, or a file of `octavo bench machine --json`"
    )
    parser.add_argument("--batch", metavar="COUNT", help="sequences in a decode step, with --device [1]")
    spread_flags.add_storage(parser)
    spread_flags.add_ranks(parser)
    output.add_json(parser)


def run(args: argparse.Namespace) -> int:
    from octavo.cli.plans import models
    from octavo.planner import flops

    name, shape = models.find(args.model)
    prompt = spread_flags.count("--prompt-tokens", args.prompt_tokens, 2048)
    cached = spread_flags.count("--cached-tokens", args.cached_tokens, 0, low=0)
    context = spread_flags.count("--context", args.context, 4096)
    length = spread_flags.count("--training-tokens", args.training_tokens, 4096)
    trained = flops.training(shape, length, recompute=args.recompute)
    found: dict[str, Any] = {
        "model": name,
        "matmul_parameters": shape.num_matmul_parameters(),
        "prompt_tokens": prompt,
        "cached_tokens": cached,
        "context": context,
        "training_tokens": length,
        "prefill": _parts(flops.prefill(shape, prompt, num_cached=cached, absorbed=args.absorbed)),
        "decode": _parts(flops.decode(shape, context, absorbed=args.absorbed)),
        "training_per_token": {
            "forward": trained.forward.total / length,
            "model": trained.model / length,
            "hardware": trained.hardware / length,
        },
    }
    if args.by_layer:
        found["layers"] = _layers(shape, prompt, cached, context, args.absorbed)
    if args.device is not None:
        found["roofline"] = _roofline(args, shape, prompt, cached, context)
    if args.json:
        output.print_json(found)
    else:
        _print(found)
    return 0


def _parts(one: Flops) -> dict[str, int]:
    return {**one.parts, "attention": one.attention, "total": one.total}


def _layers(shape: Shape, prompt: int, cached: int, context: int, absorbed: bool) -> list[dict[str, Any]]:
    from octavo.planner.flops import layer_flops

    return [
        {
            "layers": count,
            "kind": describe(layer),
            "prefill": layer_flops(
                layer, shape.hidden_size, [(cached, prompt - cached, 1)], absorbed=absorbed
            ).total,
            "decode": layer_flops(layer, shape.hidden_size, [(context - 1, 1, 1)], absorbed=absorbed).total,
        }
        for layer, count in shape.groups()
    ]


def describe(layer: Any) -> str:
    """`Attention 32/8 x 128, window 4096; Experts 8 of 2`: what sets layers apart."""
    said = []
    for mixer in layer.mixers:
        kind = type(mixer).__name__
        heads = f"{mixer.num_heads}/{mixer.num_kv_heads} x {mixer.head_dim}" if kind == "Attention" else ""
        reach = getattr(mixer, "reach", None)
        said.append(" ".join(filter(None, (kind, heads, f"reach {reach}" if reach else ""))))
    for mlp in layer.mlps:
        used = f"{mlp.used} of {mlp.count} " if hasattr(mlp, "used") else ""
        said.append(f"{type(mlp).__name__} {used}x {mlp.width}")
    return ", ".join(said)


def _roofline(
    args: argparse.Namespace, shape: Shape, prompt: int, cached: int, context: int
) -> dict[str, Any]:
    from octavo.planner import roofline
    from octavo.planner.hardware import device
    from octavo.planner.step_work import StepCounter

    gpu, form = device(args.device), spread_flags.weights(args, shape)
    spread = spread_flags.parallel(args)
    counter = StepCounter(shape, weights=form, kv=spread_flags.layout(args), parallel=spread)
    batch = spread_flags.count("--batch", args.batch, 1)
    precision = gpu.computes_in(form.compute)
    steps = {
        "prefill": counter.work([(cached, prompt - cached, 1)]),
        "decode": counter.work([(context - 1, 1, 1)] * batch),
    }
    return {
        "device": gpu.name,
        "weights": form.name,
        "kv": counter.kv.name,
        "precision": precision,
        "ridge": roofline.ridge(gpu, precision),
        "crossover_batch": roofline.crossover_batch(gpu, form),
        "batch": batch,
        "ranks": spread.num_ranks,
        "steps": {
            name: {
                "flop": work.flop,
                "weight_bytes": work.weight_bytes,
                "kv_bytes": work.kv_read_bytes + work.kv_write_bytes,
                "intensity": work.intensity,
                "bound": roofline.bound(work, gpu, precision=precision),
                "floor_s": roofline.floor_seconds(work, gpu, precision=precision),
            }
            for name, work in steps.items()
        },
    }


def _print(found: dict[str, Any]) -> None:
    prefill, decode = found["prefill"], found["decode"]
    print(
        f"{found['model']}: {format_count(found['matmul_parameters'])} weights that a token is multiplied with\n"
    )
    cached = f", {found['cached_tokens']} of them cached" if found["cached_tokens"] else ""
    columns = ["part", f"prompt of {found['prompt_tokens']}{cached}", f"token at {found['context']}", "share"]
    rows = [
        (
            part,
            _flop(prefill[part]),
            _flop(decode.get(part, 0)),
            f"{100 * prefill[part] / prefill['total']:.1f} %",
        )
        for part in prefill
        if part not in ("attention", "total") and prefill[part]
    ]
    rows.append(("total", _flop(prefill["total"]), _flop(decode["total"]), ""))
    output.print_table(columns, rows, right=[1, 2, 3])
    share = [100 * one["attention"] / one["total"] for one in (prefill, decode)]
    print(f"\ncomparing tokens is {share[0]:.1f} % of the prompt and {share[1]:.1f} % of the token")
    trained = found["training_per_token"]
    print(
        f"training on {found['training_tokens']} tokens: {_flop(trained['model'])} a token, "
        f"{trained['model'] / (6 * found['matmul_parameters']):.3f} x 6 of each weight; "
        f"{_flop(trained['hardware'])} with what is computed again"
    )
    if "layers" in found:
        print()
        rows = [
            (one["layers"], one["kind"], _flop(one["prefill"]), _flop(one["decode"]))
            for one in found["layers"]
        ]
        output.print_table(["layers", "of a kind", "prompt, each", "token, each"], rows, right=[0, 2, 3])
    if "roofline" in found:
        _print_roofline(found["roofline"])


def _print_roofline(found: dict[str, Any]) -> None:
    stored = f"weights {found['weights']}, KV {found['kv']}, products at {found['precision']}"
    print(
        f"\n{found['device']}, {stored}, {found['ranks']} rank{'s' * (found['ranks'] > 1)}: "
        f"ridge {found['ridge']:.0f} FLOP/B, linear layers leave memory's bound at "
        f"{found['crossover_batch']:.0f} tokens"
    )
    rows = [
        (
            name if name == "prefill" else f"decode x {found['batch']}",
            _flop(one["flop"]),
            format_bytes(one["weight_bytes"]),
            format_bytes(one["kv_bytes"]),
            f"{one['intensity']:.2f}",
            one["bound"],
            format_seconds(one["floor_s"]),
        )
        for name, one in found["steps"].items()
    ]
    columns = ["step", "of one rank", "weights", "KV", "FLOP/B", "bound by", "not below"]
    output.print_table(columns, rows, right=[1, 2, 3, 4, 6])


def _flop(count: float) -> str:
    return f"{format_count(count)}FLOP" if count >= 1e3 else f"{count:.0f} FLOP"
