"""Bytes a model needs, before it is loaded.

octavo plan memory MODEL                          what would be allocated on this machine
octavo plan memory MODEL --memory-limit 80GB      or on one with so much
octavo plan memory owner/name                     from the hub; only config.json is fetched
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from octavo.cli import output, settings
from octavo.cli.generate import ENGINE
from octavo.errors import ConfigError, LoadError
from octavo.units import format_bytes, format_count

if TYPE_CHECKING:
    from octavo.arch import Arch
    from octavo.config import EngineConfig
    from octavo.engine.resolve import Resolved


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", nargs="?", metavar="MODEL", help="directory, hub id, bundled name, or config.json"
    )
    output.add_json(parser)
    settings.add_flags(parser, ENGINE)


def run(args: argparse.Namespace) -> int:
    arch, resolved = look_ahead(settings.read(args).engine)
    if args.json:
        output.print_json(_as_json(arch, resolved))
    else:
        _print(arch, resolved)
    return 0


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
    arch = Arch.from_file(config_file(config.model.model))
    machine = read_machine()
    return arch, resolve(config, arch, machine, device=device, free_bytes=machine.available_bytes)


def config_file(model: str) -> Path:
    """The model's config.json, fetching nothing but that. Raises LoadError."""
    from octavo import bundled
    from octavo.engine.locate import HUB_ID, locate

    if Path(model).expanduser().exists() or model == "auto" or model in bundled.names():
        return locate(model).config
    if not HUB_ID.fullmatch(model):
        return locate(model).config
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(model, "config.json"))
    except Exception as error:  # the hub client raises dozens of kinds; all mean the same here
        raise LoadError(f"config.json of {model!r} could not be fetched from the hub: {error}") from error


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
