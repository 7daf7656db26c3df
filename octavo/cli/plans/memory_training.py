"""`octavo plan memory --training`: states by ZeRO stage, activations, logits."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from octavo.cli import output
from octavo.cli.plans import spread_flags
from octavo.errors import ConfigError
from octavo.units import format_bytes

if TYPE_CHECKING:
    from octavo.arch.shape import Shape

DETAILS = ("optimizer", "convention", "checkpoint", "micro_tokens", "microbatches", "replicas", "zero")


def add_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("training")
    group.add_argument("--training", action="store_true", help="memory of training instead of serving")
    group.add_argument("--replicas", metavar="COUNT", help="data-parallel replicas that ZeRO shards over [1]")
    group.add_argument("--zero", type=int, metavar="STAGE", help="0 to 3 [all of them]")
    group.add_argument("--optimizer", metavar="NAME", help="adam, adamw-8bit, sgd-momentum or sgd [adam]")
    group.add_argument(
        "--convention",
        metavar="NAME",
        help="bf16 (16 bytes with adam), bf16-fp32-gradients (18), bf16-both-gradients (20) or fp32 [bf16]",
    )
    group.add_argument("--checkpoint", metavar="KIND", help="none, selective or full [none]")
    group.add_argument("--micro-tokens", metavar="COUNT", help="of a microbatch on one replica [4096]")
    group.add_argument(
        "--microbatches", metavar="COUNT", help="of a step, which a pipeline keeps in flight [1]"
    )
    group.add_argument(
        "--sequence-sharded", action="store_true", help="norms are sharded over the tensor group"
    )
    group.add_argument("--no-flash", action="store_true", help="attention writes its scores")
    group.add_argument("--fused-logits", action="store_true", help="logits are never whole in memory")


def is_asked_for(args: argparse.Namespace) -> bool:
    """Raises ConfigError for a detail of training without --training."""
    given = [name for name in DETAILS if getattr(args, name) is not None]
    given += [name for name in ("sequence_sharded", "no_flash", "fused_logits") if getattr(args, name)]
    if given and not args.training:
        raise ConfigError(f"--{given[0].replace('_', '-')} goes with --training")
    return bool(args.training)


def plan(args: argparse.Namespace, shape: Shape) -> dict[str, Any]:
    """Raises ConfigError."""
    from octavo.planner.training import CONVENTIONS, Recipe, plan_training, state_bytes_per_parameter

    for name in ("weights", "kv", "context", "utilization"):
        if getattr(args, name) is not None:
            raise ConfigError(f"--{name} is of serving; leave it or --training out")
    base = Recipe()
    recipe = Recipe(
        convention=args.convention or base.convention,
        optimizer=args.optimizer or base.optimizer,
        zero_stage=base.zero_stage if args.zero is None else args.zero,
        data=spread_flags.count("--replicas", args.replicas, base.data),
        micro_tokens=spread_flags.count("--micro-tokens", args.micro_tokens, base.micro_tokens),
        microbatches=spread_flags.count("--microbatches", args.microbatches, base.microbatches),
        checkpoint=args.checkpoint or base.checkpoint,
        flash=not args.no_flash,
        sequence_sharded=args.sequence_sharded,
        fused_logits=args.fused_logits,
    )
    spread = spread_flags.parallel(args)
    stages = (0, 1, 2, 3) if args.zero is None else (args.zero,)
    plans = {stage: plan_training(shape, replace(recipe, zero_stage=stage), spread) for stage in stages}
    return {
        "convention": CONVENTIONS[recipe.convention].remark,
        "optimizer": recipe.optimizer,
        "state_bytes_per_parameter": state_bytes_per_parameter(recipe),
        "replicas": recipe.data,
        "micro_tokens": recipe.micro_tokens,
        "checkpoint": recipe.checkpoint,
        "ranks": {name: getattr(spread, name) for name in spread_flags.RANKS},
        "zero": {
            str(stage): {
                "pipeline_stage": made.stage,
                "parameters": made.num_parameters,
                **{what.replace(" ", "_") + "_bytes": size for what, size, _ in made.rows()},
            }
            for stage, made in plans.items()
        },
    }


def show(found: dict[str, Any]) -> None:
    spread = ", ".join(f"{name} {count}" for name, count in found["ranks"].items() if count > 1)
    print(
        f"training with {found['optimizer']}, {found['state_bytes_per_parameter']:g} bytes a parameter "
        f"({found['convention']}), {found['replicas']} replicas{', ' + spread if spread else ''}, "
        f"{found['micro_tokens']} tokens a microbatch, checkpoints {found['checkpoint']}: of the fullest rank\n"
    )
    stages = list(found["zero"])
    names = [name for name in next(iter(found["zero"].values())) if name.endswith("_bytes")]
    rows = [
        (
            name.removesuffix("_bytes").replace("_", " "),
            *(format_bytes(found["zero"][one][name]) for one in stages),
        )
        for name in names
    ]
    output.print_table(
        ["what", *(f"ZeRO {stage}" for stage in stages)], rows, right=range(1, len(stages) + 1)
    )
