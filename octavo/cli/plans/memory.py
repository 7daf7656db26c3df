"""Bytes a model needs, before it is loaded or bought for.

octavo plan memory MODEL                          what this engine would allocate on this machine
octavo plan memory MODEL --memory-limit 80GB      or on one with so much
octavo plan memory owner/name                     from the hub; only config.json is fetched

octavo plan memory llama-3-8b                     any shape: parameters, weights in every format, KV in every layout
octavo plan memory llama-3-70b --device h100 --tensor-parallel 4 --weights fp8 --kv fp8
octavo plan memory llama-3-8b --training --replicas 64
octavo plan memory --list                         names that need no network
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from octavo.cli import output, settings
from octavo.cli.generate import ENGINE
from octavo.cli.plans import memory_shape, models
from octavo.errors import ConfigError, LoadError
from octavo.units import format_bytes, format_count

if TYPE_CHECKING:
    from octavo.arch import Arch
    from octavo.config import EngineConfig
    from octavo.engine.resolve import Resolved


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model",
        nargs="?",
        metavar="MODEL",
        help="directory, hub id, well-known or bundled name, or config.json",
    )
    memory_shape.add_flags(parser)
    output.add_json(parser)
    settings.add_flags(parser, ENGINE)


def run(args: argparse.Namespace) -> int:
    if memory_shape.is_asked_for(args):
        return memory_shape.run(args)
    try:
        arch, resolved = look_ahead(settings.read(args).engine)
    except LoadError as error:
        return _count_instead(args, error)
    if args.json:
        output.print_json(_as_json(arch, resolved))
    else:
        _print(arch, resolved)
    return 0


def _count_instead(args: argparse.Namespace, error: LoadError) -> int:
    """What the engine does not run can be counted, where its shape is known. Raises LoadError where it is not."""
    try:
        models.find(args.model if args.model is not None else args.knob_model)
    except LoadError as second:
        raise LoadError(f"{error}; {second}" if str(error) != str(second) else str(error)) from None
    print(f"octavo: {error}", file=sys.stderr)
    print("octavo: this engine does not run it; its shape is counted instead", file=sys.stderr)
    return memory_shape.run(args)


def look_ahead(config: EngineConfig) -> tuple[Arch, Resolved]:
    """The model in numbers and every open setting settled, from config.json and this machine alone.

    Raises LoadError, and ConfigError for what does not fit.
    """
    from octavo.arch import Arch
    from octavo.engine.machine import read_machine
    from octavo.engine.resolve import resolve

    device = "cpu" if config.runtime.device == "auto" else config.runtime.device
    if device != "cpu" and config.kv.memory_limit is None:
        raise ConfigError(f"--device {device} needs --memory-limit here: a plan does not ask the device")
    arch = Arch.from_file(models.config_file(config.model.model))
    machine = read_machine()
    return arch, resolve(config, arch, machine, device=device, free_bytes=machine.available_bytes)


def _as_json(arch: Arch, resolved: Resolved) -> dict[str, object]:
    memory = resolved.memory
    return {
        "parameters": arch.num_parameters(),
        "limit_bytes": memory.limit_bytes,
        "weight_bytes": memory.weight_bytes,
        "kv_bytes": memory.kv_bytes,
        "workspace_bytes": memory.workspace_bytes,
        "recorder_bytes": memory.recorder_bytes,
        "left_bytes": memory.left_bytes,
        "kv_block_bytes": memory.kv_block_bytes,
        "num_kv_blocks": memory.num_kv_blocks,
        "kv_tokens": memory.kv_tokens,
        "sequences_of_full_length": memory.kv_tokens // resolved.max_model_len,
        "decisions": [
            {"field": made.field, "value": made.value, "because": made.because} for made in resolved.decisions
        ],
    }


def _print(arch: Arch, resolved: Resolved) -> None:
    memory = resolved.memory
    print(f"{format_count(arch.num_parameters())} parameters in {resolved.dtype}, on {resolved.device}\n")
    rows = [(what, format_bytes(num_bytes), remark) for what, num_bytes, remark in memory.rows()]
    output.print_table(["what", "bytes", ""], rows, right=[1])
    full = memory.kv_tokens / resolved.max_model_len
    print(f"\nroom for {full:.1f} sequences of the full {resolved.max_model_len} tokens\n")
    output.print_table(
        ["setting", "value", "because"], [(d.field, d.value, d.because) for d in resolved.decisions]
    )
