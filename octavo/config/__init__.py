"""Every setting on one page: frozen dataclasses that check ranges, and the table all spellings come from.

A field `kv_cache_dtype` is the flag `--kv-cache-dtype`, the variable `OCTAVO_KV_CACHE_DTYPE` and the TOML key
`kv_cache_dtype`; `KNOBS` holds one row for each field and nothing else is written down twice. "auto" and None
stay as they are here; the engine turns them into values, with reasons, when it has seen model and machine.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from octavo.config import checks
from octavo.config.knobs import Knob, nearest, setting
from octavo.errors import ConfigError
from octavo.units import GIB, MIB

DTYPES = {
    "auto": "auto",
    "bfloat16": "bfloat16", "bf16": "bfloat16",
    "float16": "float16", "fp16": "float16", "half": "float16",
    "float32": "float32", "fp32": "float32", "float": "float32",
}  # fmt: skip
"""Accepted spellings of a dtype, and the one the rest of Octavo uses."""

KV_DTYPES = DTYPES | {"fp8": "fp8", "fp8_e4m3": "fp8"}
LATER_KV_DTYPES = ("int8", "int4", "fp8_e5m2")
QUANTIZATION = ("int8", "int4", "w4a16", "w8a16", "fp8")
LATER_QUANTIZATION = ("gptq", "awq", "compressed-tensors", "bitsandbytes")
KERNELS = ("auto", "reference", "portable", "avx2", "avx512", "avx512_bf16", "amx", "emulated")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Which model, and in what numbers."""

    model: str = setting(
        "auto", "directory, hub id, bundled name, or a lone config.json (random weights); auto: bundled"
    )
    dtype: str = setting("auto", "auto, bfloat16, float16 or float32; auto takes the checkpoint's own")
    quantization: str | None = setting(
        None,
        "round weights at load: int8, int4 (activations too; CPU), or w4a16, w8a16, fp8 (weights only)",
        none="none",
    )
    max_model_len: int | None = setting(None, "longest prompt plus output, tokens", text="count", none="auto")
    seed: int = setting(0, "seed of requests that bring none, and of random weights", text="int")
    load_format: str = setting("auto", "auto, safetensors, or dummy for random weights")

    def __post_init__(self) -> None:
        checks.text("model", self.model)
        checks.text("dtype", self.dtype)
        _set(self, "dtype", checks.dtype("dtype", self.dtype, DTYPES))
        if self.quantization is not None and self.quantization not in QUANTIZATION:
            checks.text("quantization", self.quantization)
            later = self.quantization in LATER_QUANTIZATION
            why = "this build does not read it yet" if later else "no such weight format is known"
            raise ConfigError(
                f"quantization is {self.quantization!r}: {why}; use {', '.join(QUANTIZATION)}, or leave it out to"
                f" serve in {self.dtype}"
            )
        checks.optional_whole("max_model_len", self.max_model_len, 1, None)
        checks.whole("seed", self.seed, 0, 2**63 - 1)
        checks.one_of("load_format", self.load_format, ("auto", "safetensors", "dummy"))


@dataclass(frozen=True, slots=True, kw_only=True)
class KvConfig:
    """How keys and values are stored, and how much of them."""

    kv_cache_dtype: str = setting(
        "auto", "auto (the model's), bfloat16, float16, float32, or fp8 (e4m3; CUDA)"
    )
    block_size: int | None = setting(None, "tokens per block, a power of two", text="count", none="auto")
    memory_limit: int | None = setting(
        None, "bytes for weights, cache and workspace together, such as 4GiB", text="bytes", none="auto"
    )
    num_kv_blocks: int | None = setting(
        None, "blocks in the pool, instead of what memory_limit leaves", text="count", none="auto"
    )
    enable_prefix_caching: bool = setting(
        True, "reuse the keys and values of equal prompt beginnings", text="bool"
    )

    def __post_init__(self) -> None:
        checks.text("kv_cache_dtype", self.kv_cache_dtype)
        _set(
            self,
            "kv_cache_dtype",
            checks.dtype("kv_cache_dtype", self.kv_cache_dtype, KV_DTYPES, LATER_KV_DTYPES),
        )
        checks.optional_whole("block_size", self.block_size, 1, 1024)
        if self.block_size is not None and self.block_size & (self.block_size - 1):
            raise ConfigError(f"block_size must be a power of two from 1 to 1024, got {self.block_size}")
        checks.optional_whole("memory_limit", self.memory_limit, MIB, None)
        checks.optional_whole("num_kv_blocks", self.num_kv_blocks, 2, None)
        checks.boolean("enable_prefix_caching", self.enable_prefix_caching)


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerConfig:
    """How much runs at once."""

    max_num_seqs: int = setting(256, "sequences running side by side", text="count")
    max_num_batched_tokens: int | None = setting(None, "tokens in one step", text="count", none="auto")
    max_num_mixed_tokens: int | None = setting(
        None, "tokens in a step that others wait for: in which sequences decode", text="count", none="auto"
    )
    max_chunk_tokens: int | None = setting(
        None, "prompt tokens of one sequence in one step", text="count", none="auto"
    )

    def __post_init__(self) -> None:
        checks.whole("max_num_seqs", self.max_num_seqs, 1, 65536)
        checks.optional_whole("max_num_batched_tokens", self.max_num_batched_tokens, 1, None)
        checks.optional_whole("max_num_mixed_tokens", self.max_num_mixed_tokens, 1, None)
        checks.optional_whole("max_chunk_tokens", self.max_chunk_tokens, 1, None)


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeConfig:
    """Where it runs."""

    device: str = setting("auto", "auto, cpu, cuda or cuda:N")
    num_threads: int | None = setting(None, "CPU threads of the engine", text="count", none="auto")
    kernels: str = setting(
        "auto",
        "auto, reference (plain torch), or an instruction set: portable, avx2, avx512, avx512_bf16, amx",
    )
    batch_invariant: bool = setting(
        True, "a request's bits do not depend on its company; off: faster products on CUDA", text="bool"
    )
    recorder_bytes: int = setting(
        16 * MIB, "memory for what an engine remembers of its last steps, such as 16MiB", text="bytes"
    )

    def __post_init__(self) -> None:
        checks.text("kernels", self.kernels)
        checks.one_of("kernels", self.kernels, KERNELS)
        checks.text("device", self.device)
        if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", self.device):
            raise ConfigError(f"device must be auto, cpu, cuda or cuda:N, got {self.device!r}")
        checks.optional_whole("num_threads", self.num_threads, 1, 4096)
        checks.boolean("batch_invariant", self.batch_invariant)
        checks.whole("recorder_bytes", self.recorder_bytes, MIB // 16, GIB)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """The front process: where it listens, whom it serves, when it says no."""

    host: str = setting("127.0.0.1", "address to listen on; anything but loopback is reachable by others")
    port: int = setting(8000, "TCP port; 0 lets the system choose one", text="int")
    api_key: tuple[str, ...] = setting(
        (), "keys that may call, comma separated; none lets everybody", text="list", secret=True
    )
    keys: str | None = setting(
        None, "TOML file of tenants, digests of their keys and their limits", none="none"
    )
    allowed_hosts: tuple[str, ...] = setting(
        (), "names besides this machine's own that callers without a key may use on loopback", text="list"
    )
    engines: int = setting(1, "engine processes on this machine, each with the whole model", text="count")
    routing: str = setting(
        "prefix", "which engine takes a request: prefix (by cached beginning) or least_loaded"
    )
    hold_s: float = setting(60.0, "how long a request waits while no engine is ready", text="seconds")
    served_model_name: str | None = setting(
        None, "name of the model on the wire instead of its own", none="none"
    )
    tool_call_format: str = setting(
        "auto", "how the model writes calls: hermes, mistral or llama3_json; auto asks its chat template"
    )
    max_queued_requests: int = setting(
        512, "requests waiting or running; one more is refused with 429", text="count"
    )
    max_body_bytes: int = setting(32 * MIB, "largest request body, such as 32MiB", text="bytes")
    keep_alive_s: float = setting(10.0, "silence after which a stream gets a comment line", text="seconds")
    log_format: str = setting("text", "text (pairs) or json (an object per line)")
    otlp_endpoint: str | None = setting(
        None, "collector of traces over OTLP and HTTP, such as http://127.0.0.1:4318", none="none"
    )
    metrics_compat: str | None = setting(None, "vllm: metrics under vLLM's names beside our own", none="none")
    console: bool = setting(True, "a page at / to chat and to look at the server with", text="bool")
    open_metrics: bool = setting(False, "let /metrics be read without a key", text="bool")
    admin_port: int | None = setting(
        None, "TCP port of the operator's listener; none keeps it closed", text="int", none="none"
    )
    admin_host: str = setting("127.0.0.1", "address the operator's listener has with admin_port")
    admin_socket: str | None = setting(
        None, "path of a Unix socket for the operator's listener, open to this user alone", none="none"
    )
    admin_key: str | None = setting(None, "key of the operator's listener", none="none", secret=True)
    drain_s: float = setting(30.0, "time for running requests to end after SIGTERM", text="seconds")
    data_dir: str = setting("~/.local/share/octavo", "folder for files, batches and their database")
    store_url: str | None = setting(
        None,
        "postgresql://... for files and batches, instead of SQLite in data_dir",
        none="none",
        secret=True,
    )
    store_responses: bool = setting(
        True, "keep answers of /v1/responses that do not say store: false", text="bool"
    )
    response_ttl_s: float = setting(30 * 86400.0, "how long kept answers stay, such as 720h", text="seconds")
    max_recordings: int = setting(
        8, "recordings kept in data_dir, the latest ones; 0 keeps those that were asked for", text="count"
    )
    max_file_bytes: int = setting(512 * MIB, "largest file, such as 512MiB", text="bytes")
    file_quota_bytes: int = setting(16 * GIB, "files of one tenant together, such as 16GiB", text="bytes")
    batch_max_lines: int = setting(50_000, "requests in one batch", text="count")
    batch_max_bytes: int = setting(200 * 10**6, "bytes in one batch's input, such as 200MB", text="bytes")
    batch_concurrency: int = setting(64, "lines of batches running side by side, at most", text="count")
    max_batches: int = setting(100, "batches of one tenant that have not ended", text="count")

    def __post_init__(self) -> None:
        checks.text("host", self.host)
        checks.whole("port", self.port, 0, 65535)
        if not isinstance(self.api_key, tuple) or any(
            not isinstance(k, str) or len(k) < 8 for k in self.api_key
        ):
            raise ConfigError("api_key must hold keys of at least 8 characters each (values are not shown)")
        if self.keys is not None:
            checks.text("keys", self.keys)
        if not isinstance(self.allowed_hosts, tuple) or any(
            not isinstance(name, str) or not name for name in self.allowed_hosts
        ):
            raise ConfigError(f"allowed_hosts must hold names of hosts, got {self.allowed_hosts!r}")
        if self.served_model_name is not None:
            checks.text("served_model_name", self.served_model_name)
        checks.whole("engines", self.engines, 1, 256)
        checks.one_of("routing", self.routing, ("prefix", "least_loaded"))
        checks.number("hold_s", self.hold_s, 0.0, 86400.0)
        checks.one_of("tool_call_format", self.tool_call_format, ("auto", "hermes", "mistral", "llama3_json"))
        checks.whole("max_queued_requests", self.max_queued_requests, 1, 10**6)
        checks.whole("max_body_bytes", self.max_body_bytes, 1024, 2**31)
        checks.number("keep_alive_s", self.keep_alive_s, 0.05, 600.0)
        checks.number("drain_s", self.drain_s, 0.0, 86400.0)
        checks.text("data_dir", self.data_dir)
        if self.store_url is not None:
            checks.text("store_url", self.store_url)
        if self.metrics_compat is not None:
            checks.one_of("metrics_compat", self.metrics_compat, ("vllm",))
        if self.otlp_endpoint is not None and not re.match(r"https?://", self.otlp_endpoint):
            raise ConfigError(f"otlp_endpoint must be an http address, got {self.otlp_endpoint!r}")
        checks.one_of("log_format", self.log_format, ("text", "json"))
        checks.boolean("console", self.console)
        checks.boolean("open_metrics", self.open_metrics)
        checks.boolean("store_responses", self.store_responses)
        checks.number("response_ttl_s", self.response_ttl_s, 1.0, 10.0 * 365 * 86400)
        checks.whole("max_recordings", self.max_recordings, 0, 10**4)
        checks.whole("max_file_bytes", self.max_file_bytes, 1, 2**50)
        checks.whole("file_quota_bytes", self.file_quota_bytes, 1, 2**60)
        checks.whole("batch_max_lines", self.batch_max_lines, 1, 10**7)
        checks.whole("batch_max_bytes", self.batch_max_bytes, 1, 2**50)
        checks.whole("batch_concurrency", self.batch_concurrency, 1, 65536)
        checks.whole("max_batches", self.max_batches, 1, 10**6)
        self._check_admin()

    def _check_admin(self) -> None:
        checks.text("admin_host", self.admin_host)
        checks.optional_whole("admin_port", self.admin_port, 0, 65535)
        if self.admin_socket is not None:
            checks.text("admin_socket", self.admin_socket)
        if self.admin_key is not None and (not isinstance(self.admin_key, str) or len(self.admin_key) < 16):
            raise ConfigError("admin_key must have at least 16 characters (its value is not shown)")
        if self.admin_key is not None and self.admin_key in self.api_key:
            raise ConfigError(
                "admin_key must not be one of api_key: those that call are not those that operate"
            )
        if self.admin_key is None and (self.admin_port is not None or self.admin_socket is not None):
            raise ConfigError("admin_port and admin_socket need an admin_key; set OCTAVO_ADMIN_KEY")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """Everything an engine is told before it has seen the model and the machine."""

    model: ModelConfig = field(default_factory=ModelConfig)
    kv: KvConfig = field(default_factory=KvConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)

    @classmethod
    def of(cls, **values: Any) -> EngineConfig:
        """From flat names, as in `LLM(model=..., max_num_seqs=...)`. Unknown names raise ConfigError."""
        return cls(**sections(values, [knob for knob in KNOBS if knob.section != "server"]))


def sections(values: Mapping[str, Any], knobs: Iterable[Knob]) -> dict[str, Any]:
    """Section name -> its dataclass, from flat values; those left out keep their defaults.

    Raises ConfigError for a name no knob has (with the nearest one) and for values out of range.
    """
    by_name = {knob.name: knob for knob in knobs}
    parts: dict[str, dict[str, Any]] = {knob.section: {} for knob in by_name.values()}
    for name, value in values.items():
        if name not in by_name:
            raise ConfigError(f"unknown setting {name!r}{nearest(name, by_name)}")
        parts[by_name[name].section][name] = value
    return {section: SECTIONS[section](**part) for section, part in parts.items()}


SECTIONS: Mapping[str, Callable[..., Any]] = {
    "model": ModelConfig,
    "kv": KvConfig,
    "scheduler": SchedulerConfig,
    "runtime": RuntimeConfig,
    "server": ServerConfig,
}


def _rows() -> Iterable[Knob]:
    for section, kind in SECTIONS.items():
        for item in dataclasses.fields(kind):  # type: ignore[arg-type]
            yield Knob(item.name, section, item.default, **item.metadata)


KNOBS: tuple[Knob, ...] = tuple(_rows())
"""One row per setting, in the order of this page."""


def _set(config: object, name: str, value: object) -> None:
    """While a frozen one is being made."""
    object.__setattr__(config, name, value)
