"""What this machine has, what Octavo would choose on it and why, and what to mend.

Each line is ok, a warning, or a problem; warnings and problems come with a fix. With a problem the exit code is 4.
"""

from __future__ import annotations

import argparse
import importlib.util
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import octavo
from octavo.cli import output, settings
from octavo.cli.main import DONE, FAILED
from octavo.config import SECTIONS, EngineConfig, ServerConfig
from octavo.errors import ConfigError, OctavoError
from octavo.units import GIB, format_bytes

if TYPE_CHECKING:
    from octavo.arch import Arch
    from octavo.engine.build import Plan

OK, WARNING, PROBLEM = "ok", "warning", "problem"
LOW_DISK_BYTES = 5 * GIB


@dataclass(frozen=True, slots=True)
class Finding:
    """One line: what was looked at, what was found, and how to mend it where that is needed."""

    state: str
    what: str
    found: str
    fix: str = ""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", metavar="MODEL", help="whose kernels and memory to look at")
    output.add_json(parser)
    settings.add_flags(parser, SECTIONS)


def run(args: argparse.Namespace) -> int:
    found = settings.read(args)
    device = found.engine.runtime.device
    findings = [
        *_software(device),
        *_processor(),
        *_memory_and_disk(),
        *_port(found.server),
        *_model(found.engine),
    ]
    if args.json:
        output.print_json([asdict(one) for one in findings])
    else:
        output.print_table(["", "what", "found"], [(one.state, one.what, one.found) for one in findings])
        for one in findings:
            if one.fix:
                print(f"\n{one.state}: {one.what}: {one.fix}")
    return FAILED if any(one.state == PROBLEM for one in findings) else DONE


def _software(asked: str) -> Iterator[Finding]:
    yield Finding(OK, "octavo", octavo.__version__)
    yield Finding(OK, "python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    try:
        import torch
    except (ImportError, OSError) as error:
        yield Finding(PROBLEM, "torch", f"cannot be imported: {error}", "pip install torch")
        return
    yield Finding(OK, "torch", torch.__version__)
    yield from _gpus(asked)


def _gpus(asked: str) -> Iterator[Finding]:
    """GPUs, or what is missing for them: a problem where the configuration asks for one."""
    import torch

    from octavo.engine.gpu import lacks

    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            facts = torch.cuda.get_device_properties(number)
            yield Finding(OK, f"cuda:{number}", f"{facts.name}, {format_bytes(facts.total_memory)}")
    elif asked.startswith("cuda"):
        for lack in lacks():
            yield Finding(PROBLEM, "cuda", lack.what, lack.mend)
    else:
        yield Finding(OK, "cuda", f"the CPU is used: {'; '.join(lack.what for lack in lacks())}")


def _processor() -> Iterator[Finding]:
    from octavo.engine.cpu import read_cpu
    from octavo.engine.machine import read_machine

    cpu = read_cpu()
    yield Finding(OK, "processor", f"{cpu.model}, {read_machine().num_cores} cores usable")
    yield Finding(OK, "instruction sets", " ".join(cpu.instruction_sets) or "none that kernels ask for")
    if importlib.util.find_spec("octavo._cpu") is None:
        fix = "the package was installed without its C++ part: pip install . with a C++ compiler at hand"
        yield Finding(WARNING, "compiled kernels", "not built; the torch reference runs instead", fix)
        return
    from octavo import _cpu

    yield Finding(OK, "compiled kernels", "built; on this processor: " + " ".join(_cpu.features()))


def _memory_and_disk() -> Iterator[Finding]:
    from huggingface_hub.constants import HF_HUB_CACHE

    from octavo.engine.machine import read_machine

    machine = read_machine()
    text = f"{format_bytes(machine.available_bytes)} free of {format_bytes(machine.total_bytes)}"
    yield Finding(OK, "memory", text)
    place = Path(HF_HUB_CACHE)
    while not place.exists():
        place = place.parent
    free_bytes = shutil.disk_usage(place).free
    if free_bytes < LOW_DISK_BYTES:
        fix = f"models are fetched to {HF_HUB_CACHE}; make room there, or set HF_HOME to another disk"
        yield Finding(WARNING, "disk", f"{format_bytes(free_bytes)} free", fix)
    else:
        yield Finding(OK, "disk", f"{format_bytes(free_bytes)} free for fetched models")


def _port(server: ServerConfig) -> Iterator[Finding]:
    from octavo.server.run import bind

    try:
        bind(server.host, server.port).close()
    except ConfigError as error:
        fix = f"choose another: octavo serve --port 0, or see who listens: ss -ltnp 'sport = :{server.port}'"
        yield Finding(WARNING, "port", str(error), fix)
        return
    yield Finding(OK, "port", f"{server.host}:{server.port} is free")
    if server.host not in ("127.0.0.1", "localhost", "::1") and not server.api_key:
        fix = "set --api-key, or leave --host at 127.0.0.1"
        yield Finding(WARNING, "host", f"{server.host} can be reached by others, without a key", fix)


def _model(config: EngineConfig) -> Iterator[Finding]:
    if "torch" not in sys.modules:
        return
    from octavo.engine.build import plan

    try:
        planned = plan(config)
    except OctavoError as error:
        yield Finding(
            PROBLEM,
            "model",
            f"{error}",
            f"name another model, or change what the message names [{error.code}]",
        )
        yield from _kernels_without(config)
        return
    yield Finding(OK, "model", f"{planned.location.name}: {planned.arch.family}")
    for what, num_bytes, remark in planned.resolved.memory.rows():
        yield Finding(OK, what, f"{format_bytes(num_bytes)} {remark}".strip())
    for made in planned.resolved.decisions:
        if made.field != "batch_invariant":
            yield Finding(OK, made.field, f"{made.value}: {made.because}")
    try:
        yield from _kernels(planned)
    except OctavoError as error:
        yield Finding(PROBLEM, "kernels", str(error), "use another dtype or device")


def _kernels(planned: Plan) -> Iterator[Finding]:
    """What would run each op, and why the others would not. Compiled kernels run all of them; why is decided above."""
    if planned.resolved.isa is None:
        resolved = planned.resolved
        yield from _chosen(
            planned.config, planned.arch, resolved.dtype, resolved.device, resolved.quantization
        )


def _kernels_without(config: EngineConfig) -> Iterator[Finding]:
    """The same for a GPU that is not there."""
    from octavo.arch import Arch
    from octavo.engine.locate import locate
    from octavo.kernels import native

    if not config.runtime.device.startswith("cuda"):
        return
    try:
        arch = Arch.from_file(locate(config.model.model).config)
    except OctavoError:  # reported already
        return
    dtype = config.model.dtype
    dtype = arch.dtype or "float32" if dtype == "auto" else dtype
    quantization = config.model.quantization
    try:
        native.check_quantization(
            quantization, None, f"compiled kernels run on cpu, not on {config.runtime.device}"
        )
    except ConfigError as error:
        yield Finding(PROBLEM, "quantization", str(error), "use one that the message names")
        quantization = None
    yield from _chosen(config, arch, dtype, config.runtime.device, quantization)


def _chosen(
    config: EngineConfig, arch: Arch, dtype: str, device: str, quantization: str | None
) -> Iterator[Finding]:
    import torch

    from octavo.models.ops import check_variance, decisions_of

    batch_invariant = config.runtime.batch_invariant
    chosen = decisions_of(
        arch,
        getattr(torch, dtype),
        torch.device(device),
        quantization,
        has_fp8_kv=config.kv.kv_cache_dtype == "fp8",
        batch_invariant=batch_invariant,
    )
    for one in chosen:
        name = one.impl if one.is_batch_invariant else f"{one.impl}, whose bits depend on the batch"
        yield Finding(OK, f"kernel {one.op}", "; ".join([name, *one.passed_over]))
    if batch_invariant:
        return
    try:
        check_variance(chosen)
    except ConfigError as error:
        yield Finding(PROBLEM, "batch invariance", str(error), "leave out --no-batch-invariant")
        return
    ops = ", ".join(one.op for one in chosen if not one.is_batch_invariant)
    found = f"off: a request's tokens depend on what runs beside it, by {ops}"
    fix = "answers are not repeated after a crash, a preemption or a cache hit; leave out --no-batch-invariant for that"
    yield Finding(WARNING, "batch invariance", found, fix)
