"""From a configuration to a running engine, in order: look, plan, load."""

from __future__ import annotations

import ctypes
import secrets
import time
from dataclasses import dataclass, replace

import torch

from octavo.arch import Arch
from octavo.codec.numbers import NumberTokenizer
from octavo.codec.tokenizer import Tokenizer
from octavo.config import EngineConfig
from octavo.engine.gpu import check_device
from octavo.engine.locate import Location, locate
from octavo.engine.loop import Engine
from octavo.engine.machine import WHOLE, Machine, Share, read_machine
from octavo.engine.resolve import Resolved, resolve
from octavo.exec import graphs
from octavo.exec.graphs import Graphs
from octavo.exec.place import on
from octavo.exec.runner import Runner
from octavo.exec.warm import warm
from octavo.kv.pool import KvPool
from octavo.models.loader import load
from octavo.models.model import Model
from octavo.obs import recorder
from octavo.planner.memory import FP8_KV


@dataclass(frozen=True, slots=True)
class Plan:
    """What will be built, settled before a weight is read."""

    config: EngineConfig
    location: Location
    arch: Arch
    machine: Machine
    resolved: Resolved


@dataclass(frozen=True, slots=True)
class Built:
    """A running engine and what it was made of.

    trail  what its scheduler has been asked and has decided lately; see `octavo.obs.recorder`
    """

    plan: Plan
    engine: Engine
    model: Model
    tokenizer: Tokenizer
    trail: memoryview


def plan(config: EngineConfig, share: Share = WHOLE) -> Plan:
    """Everything that can be known from config.json and this machine. Reads no weights."""
    location = locate(config.model.model)
    if config.model.load_format == "dummy":
        location = replace(location, is_random=True)
    arch = Arch.from_file(location.config)
    machine = read_machine()
    device, free_bytes = _device(config.runtime.device, machine)
    with on(torch.device(device)):
        resolved = resolve(config, arch, machine, device=device, free_bytes=free_bytes, share=share)
    return Plan(config, location, arch, machine, resolved)


def build(
    config: EngineConfig,
    planned: Plan | None = None,
    trail: bytearray | memoryview | None = None,
    trail_key: bytes = b"",
) -> Built:
    """Load the model and start the engine.

    planned    saves planning twice when it has been shown already
    trail      memory for the recorder; None makes some
    trail_key  16 secret bytes for the names of tokens in it; none draws some
    """
    planned = planned or plan(config)
    torch.set_num_threads(planned.resolved.num_threads)
    with on(torch.device(planned.resolved.device)):
        return _built(config, planned, trail, trail_key)


def _built(
    config: EngineConfig, planned: Plan, trail: bytearray | memoryview | None, trail_key: bytes
) -> Built:
    resolved, location = planned.resolved, planned.location
    tokenizer = read_tokenizer(location, planned.arch)
    device = torch.device(resolved.device)
    dtype = getattr(torch, resolved.dtype)
    model = load(
        location.config if location.is_random else location.folder,
        dtype=dtype,
        device=device,
        load_format="random" if location.is_random else "auto",
        seed=config.model.seed,
        kernels=resolved.isa or "reference",
        quantization=resolved.quantization,
        has_fp8_kv=resolved.kv_dtype == FP8_KV,
        batch_invariant=config.runtime.batch_invariant,
    )
    arch, limits = planned.arch, resolved.limits
    kv = KvPool(model.kv_layout(limits.block_tokens), arch.num_layers, limits.num_blocks, device)
    model.reserve(limits.block_tokens, limits.max_num_batched_tokens, resolved.max_model_len)
    _give_back()
    limits = replace(limits, fingerprint=model.fingerprint)
    memory = memoryview(bytearray(config.runtime.recorder_bytes) if trail is None else trail)
    runner = Runner(model, kv, forward=_recorded(model, kv, resolved))
    if device.type == "cuda":
        warm(
            runner,
            max_num_seqs=limits.max_num_seqs,
            max_num_batched_tokens=limits.max_num_batched_tokens,
            max_model_len=resolved.max_model_len,
        )
    ring = recorder.ring(memory, limits, batch_invariant=config.runtime.batch_invariant)
    scheduler = recorder.RecordedScheduler(limits, ring, trail_key or secrets.token_bytes(16))
    engine = Engine(
        scheduler,
        runner,
        tokenizer,
        vocab_size=arch.vocab_size,
        clock=time.monotonic,
        seed=config.model.seed,
        on_ran=scheduler.ran,
        launches_behind=device.type == "cuda",
    )
    return Built(planned, engine, model, tokenizer, memory)


def _recorded(model: Model, kv: KvPool, resolved: Resolved) -> Graphs | None:
    """Graphs for decode steps where they can be had, the largest recorded so that all memory is taken now."""
    if graphs.why_not(model.arch, model.device, model.decisions) is not None:
        return None
    limits = resolved.limits
    sizes = graphs.Sizes.of(limits.max_num_seqs, resolved.max_model_len, limits.block_tokens)
    made = Graphs(model, kv, sizes)
    made.reserve()
    return made


def _give_back() -> None:
    """Return memory that loading needed for a while to the system, where the C library can."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def read_tokenizer(location: Location, arch: Arch) -> Tokenizer:
    """The folder's tokenizer; for a lone config.json, one whose words are the token ids themselves."""
    if not location.is_random or (location.folder / "tokenizer.json").is_file():
        return Tokenizer.from_path(location.folder)
    return NumberTokenizer(arch.vocab_size, arch.end_token_ids)


def _device(asked: str, machine: Machine) -> tuple[str, int]:
    """The device to use and its free bytes."""
    if asked.startswith("cuda"):
        check_device(asked)
    if asked == "cpu" or not torch.cuda.is_available():
        return "cpu", machine.available_bytes
    device = "cuda" if asked == "auto" else asked
    return device, torch.cuda.mem_get_info(torch.device(device))[0]
