"""Every setting on one page: frozen dataclasses that check ranges, and the table all spellings come from.

A field `kv_cache_dtype` is the flag `--kv-cache-dtype`, the variable `OCTAVO_KV_CACHE_DTYPE` and the TOML key
`kv_cache_dtype`; `KNOBS` holds one row for each field and nothing else is written down twice. "auto" and None
stay as they are here; the engine turns them into values, with reasons, when it has seen model and machine.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from octavo.errors import ConfigError
from octavo.units import GIB, MIB, parse_bytes, parse_count, parse_seconds

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


def _knob(
    default: Any, help: str, *, text: str = "str", none: str | None = None, secret: bool = False
) -> Any:
    """A field with what the table needs beside its name: how its text is read, and a line of help."""
    meta = {"help": help, "text": text, "none": none, "secret": secret}
    return field(default=default, metadata=meta)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Which model, and in what numbers."""

    model: str = _knob(
        "auto", "directory, hub id, bundled name, or a lone config.json (random weights); auto: bundled"
    )
    dtype: str = _knob("auto", "auto, bfloat16, float16 or float32; auto takes the checkpoint's own")
    quantization: str | None = _knob(
        None,
        "round weights at load: int8, int4 (activations too; CPU), or w4a16, w8a16, fp8 (weights only)",
        none="none",
    )
    max_model_len: int | None = _knob(None, "longest prompt plus output, tokens", text="count", none="auto")
    seed: int = _knob(0, "seed of requests that bring none, and of random weights", text="int")
    load_format: str = _knob("auto", "auto, safetensors, or dummy for random weights")

    def __post_init__(self) -> None:
        _text("model", self.model)
        _text("dtype", self.dtype)
        _set(self, "dtype", _dtype("dtype", self.dtype, DTYPES))
        if self.quantization is not None and self.quantization not in QUANTIZATION:
            _text("quantization", self.quantization)
            later = self.quantization in LATER_QUANTIZATION
            why = "this build does not read it yet" if later else "no such weight format is known"
            raise ConfigError(
                f"quantization is {self.quantization!r}: {why}; use {', '.join(QUANTIZATION)}, or leave it out to"
                f" serve in {self.dtype}"
            )
        _optional_whole("max_model_len", self.max_model_len, 1, None)
        _whole("seed", self.seed, 0, 2**63 - 1)
        _one_of("load_format", self.load_format, ("auto", "safetensors", "dummy"))


@dataclass(frozen=True, slots=True, kw_only=True)
class KvConfig:
    """How keys and values are stored, and how much of them."""

    kv_cache_dtype: str = _knob("auto", "auto (the model's), bfloat16, float16, float32, or fp8 (e4m3; CUDA)")
    block_size: int | None = _knob(None, "tokens per block, a power of two", text="count", none="auto")
    memory_limit: int | None = _knob(
        None, "bytes for weights, cache and workspace together, such as 4GiB", text="bytes", none="auto"
    )
    num_kv_blocks: int | None = _knob(
        None, "blocks in the pool, instead of what memory_limit leaves", text="count", none="auto"
    )
    enable_prefix_caching: bool = _knob(
        True, "reuse the keys and values of equal prompt beginnings", text="bool"
    )

    def __post_init__(self) -> None:
        _text("kv_cache_dtype", self.kv_cache_dtype)
        _set(
            self, "kv_cache_dtype", _dtype("kv_cache_dtype", self.kv_cache_dtype, KV_DTYPES, LATER_KV_DTYPES)
        )
        _optional_whole("block_size", self.block_size, 1, 1024)
        if self.block_size is not None and self.block_size & (self.block_size - 1):
            raise ConfigError(f"block_size must be a power of two from 1 to 1024, got {self.block_size}")
        _optional_whole("memory_limit", self.memory_limit, MIB, None)
        _optional_whole("num_kv_blocks", self.num_kv_blocks, 2, None)
        _boolean("enable_prefix_caching", self.enable_prefix_caching)


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerConfig:
    """How much runs at once."""

    max_num_seqs: int = _knob(256, "sequences running side by side", text="count")
    max_num_batched_tokens: int | None = _knob(None, "tokens in one step", text="count", none="auto")
    max_num_mixed_tokens: int | None = _knob(
        None, "tokens in a step that others wait for: in which sequences decode", text="count", none="auto"
    )
    max_chunk_tokens: int | None = _knob(
        None, "prompt tokens of one sequence in one step", text="count", none="auto"
    )

    def __post_init__(self) -> None:
        _whole("max_num_seqs", self.max_num_seqs, 1, 65536)
        _optional_whole("max_num_batched_tokens", self.max_num_batched_tokens, 1, None)
        _optional_whole("max_num_mixed_tokens", self.max_num_mixed_tokens, 1, None)
        _optional_whole("max_chunk_tokens", self.max_chunk_tokens, 1, None)


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeConfig:
    """Where it runs."""

    device: str = _knob("auto", "auto, cpu, cuda or cuda:N")
    num_threads: int | None = _knob(None, "CPU threads of the engine", text="count", none="auto")
    kernels: str = _knob(
        "auto",
        "auto, reference (plain torch), or an instruction set: portable, avx2, avx512, avx512_bf16, amx",
    )
    batch_invariant: bool = _knob(
        True, "a request's bits do not depend on its company; off: faster products on CUDA", text="bool"
    )
    recorder_bytes: int = _knob(
        16 * MIB, "memory for what an engine remembers of its last steps, such as 16MiB", text="bytes"
    )

    def __post_init__(self) -> None:
        _text("kernels", self.kernels)
        _one_of("kernels", self.kernels, KERNELS)
        _text("device", self.device)
        if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", self.device):
            raise ConfigError(f"device must be auto, cpu, cuda or cuda:N, got {self.device!r}")
        _optional_whole("num_threads", self.num_threads, 1, 4096)
        _boolean("batch_invariant", self.batch_invariant)
        _whole("recorder_bytes", self.recorder_bytes, MIB // 16, GIB)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """The front process: where it listens, whom it serves, when it says no."""

    host: str = _knob("127.0.0.1", "address to listen on; anything but loopback is reachable by others")
    port: int = _knob(8000, "TCP port; 0 lets the system choose one", text="int")
    api_key: tuple[str, ...] = _knob(
        (), "keys that may call, comma separated; none lets everybody", text="list", secret=True
    )
    keys: str | None = _knob(
        None, "TOML file of tenants, digests of their keys and their limits", none="none"
    )
    allowed_hosts: tuple[str, ...] = _knob(
        (), "names besides this machine's own that callers without a key may use on loopback", text="list"
    )
    engines: int = _knob(1, "engine processes on this machine, each with the whole model", text="count")
    routing: str = _knob(
        "prefix", "which engine takes a request: prefix (by cached beginning) or least_loaded"
    )
    hold_s: float = _knob(60.0, "how long a request waits while no engine is ready", text="seconds")
    served_model_name: str | None = _knob(
        None, "name of the model on the wire instead of its own", none="none"
    )
    tool_call_format: str = _knob(
        "auto", "how the model writes calls: hermes, mistral or llama3_json; auto asks its chat template"
    )
    max_queued_requests: int = _knob(
        512, "requests waiting or running; one more is refused with 429", text="count"
    )
    max_body_bytes: int = _knob(32 * MIB, "largest request body, such as 32MiB", text="bytes")
    keep_alive_s: float = _knob(10.0, "silence after which a stream gets a comment line", text="seconds")
    log_format: str = _knob("text", "text (pairs) or json (an object per line)")
    otlp_endpoint: str | None = _knob(
        None, "collector of traces over OTLP and HTTP, such as http://127.0.0.1:4318", none="none"
    )
    metrics_compat: str | None = _knob(None, "vllm: metrics under vLLM's names beside our own", none="none")
    console: bool = _knob(True, "a page at / to chat and to look at the server with", text="bool")
    open_metrics: bool = _knob(False, "let /metrics be read without a key", text="bool")
    admin_port: int | None = _knob(
        None, "TCP port of the operator's listener; none keeps it closed", text="int", none="none"
    )
    admin_host: str = _knob("127.0.0.1", "address the operator's listener has with admin_port")
    admin_socket: str | None = _knob(
        None, "path of a Unix socket for the operator's listener, open to this user alone", none="none"
    )
    admin_key: str | None = _knob(None, "key of the operator's listener", none="none", secret=True)
    drain_s: float = _knob(30.0, "time for running requests to end after SIGTERM", text="seconds")
    data_dir: str = _knob("~/.local/share/octavo", "folder for files, batches and their database")
    store_url: str | None = _knob(
        None,
        "postgresql://... for files and batches, instead of SQLite in data_dir",
        none="none",
        secret=True,
    )
    store_responses: bool = _knob(
        True, "keep answers of /v1/responses that do not say store: false", text="bool"
    )
    response_ttl_s: float = _knob(30 * 86400.0, "how long kept answers stay, such as 720h", text="seconds")
    max_recordings: int = _knob(
        8, "recordings kept in data_dir, the latest ones; 0 keeps those that were asked for", text="count"
    )
    max_file_bytes: int = _knob(512 * MIB, "largest file, such as 512MiB", text="bytes")
    file_quota_bytes: int = _knob(16 * GIB, "files of one tenant together, such as 16GiB", text="bytes")
    batch_max_lines: int = _knob(50_000, "requests in one batch", text="count")
    batch_max_bytes: int = _knob(200 * 10**6, "bytes in one batch's input, such as 200MB", text="bytes")
    batch_concurrency: int = _knob(64, "lines of batches running side by side, at most", text="count")
    max_batches: int = _knob(100, "batches of one tenant that have not ended", text="count")

    def __post_init__(self) -> None:
        _text("host", self.host)
        _whole("port", self.port, 0, 65535)
        if not isinstance(self.api_key, tuple) or any(
            not isinstance(k, str) or len(k) < 8 for k in self.api_key
        ):
            raise ConfigError("api_key must hold keys of at least 8 characters each (values are not shown)")
        if self.keys is not None:
            _text("keys", self.keys)
        if not isinstance(self.allowed_hosts, tuple) or any(
            not isinstance(name, str) or not name for name in self.allowed_hosts
        ):
            raise ConfigError(f"allowed_hosts must hold names of hosts, got {self.allowed_hosts!r}")
        if self.served_model_name is not None:
            _text("served_model_name", self.served_model_name)
        _whole("engines", self.engines, 1, 256)
        _one_of("routing", self.routing, ("prefix", "least_loaded"))
        _number("hold_s", self.hold_s, 0.0, 86400.0)
        _one_of("tool_call_format", self.tool_call_format, ("auto", "hermes", "mistral", "llama3_json"))
        _whole("max_queued_requests", self.max_queued_requests, 1, 10**6)
        _whole("max_body_bytes", self.max_body_bytes, 1024, 2**31)
        _number("keep_alive_s", self.keep_alive_s, 0.05, 600.0)
        _number("drain_s", self.drain_s, 0.0, 86400.0)
        _text("data_dir", self.data_dir)
        if self.store_url is not None:
            _text("store_url", self.store_url)
        if self.metrics_compat is not None:
            _one_of("metrics_compat", self.metrics_compat, ("vllm",))
        if self.otlp_endpoint is not None and not re.match(r"https?://", self.otlp_endpoint):
            raise ConfigError(f"otlp_endpoint must be an http address, got {self.otlp_endpoint!r}")
        _one_of("log_format", self.log_format, ("text", "json"))
        _boolean("console", self.console)
        _boolean("open_metrics", self.open_metrics)
        _boolean("store_responses", self.store_responses)
        _number("response_ttl_s", self.response_ttl_s, 1.0, 10.0 * 365 * 86400)
        _whole("max_recordings", self.max_recordings, 0, 10**4)
        _whole("max_file_bytes", self.max_file_bytes, 1, 2**50)
        _whole("file_quota_bytes", self.file_quota_bytes, 1, 2**60)
        _whole("batch_max_lines", self.batch_max_lines, 1, 10**7)
        _whole("batch_max_bytes", self.batch_max_bytes, 1, 2**50)
        _whole("batch_concurrency", self.batch_concurrency, 1, 65536)
        _whole("max_batches", self.max_batches, 1, 10**6)
        self._check_admin()

    def _check_admin(self) -> None:
        _text("admin_host", self.admin_host)
        _optional_whole("admin_port", self.admin_port, 0, 65535)
        if self.admin_socket is not None:
            _text("admin_socket", self.admin_socket)
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


@dataclass(frozen=True, slots=True)
class Knob:
    """One setting in all its spellings.

    section   name of the dataclass it belongs to in `EngineConfig`, or "server"
    text      how a flag or variable is read: str, int, count, bytes, seconds, bool or list
    none      word for None: "auto" where the engine then decides, "none" where nothing is meant; None where a
              value is needed
    secret    its value is never printed
    """

    name: str
    section: str
    default: Any
    help: str
    text: str
    none: str | None
    secret: bool

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        return "OCTAVO_" + self.name.upper()

    def parse(self, text: str) -> Any:
        """The value a flag or a variable spells. Raises ConfigError that names the setting."""
        if self._is_none(text):
            return None
        try:
            return _READ[self.text](text)
        except ConfigError as error:
            raise ConfigError(f"{self.name}: {error}") from None
        except ValueError:
            raise ConfigError(f"{self.name} must be a {_KIND[self.text]}, got {text!r}") from None

    def _is_none(self, text: str) -> bool:
        return self.none is not None and text.strip().lower() in ("none", self.none)

    def accept(self, value: Any) -> Any:
        """The value a TOML key holds: text is parsed where a unit may stand, lists become tuples."""
        if isinstance(value, str) and self.text in ("bytes", "seconds", "count", "list"):
            return self.parse(value)
        if isinstance(value, str) and self._is_none(value):
            return None
        if self.text == "seconds" and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        return tuple(value) if self.text == "list" and isinstance(value, list) else value


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


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?`, or nothing when no known name is close."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


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


def _read_bool(text: str) -> bool:
    words = {
        "1": True,
        "true": True,
        "yes": True,
        "on": True,
        "0": False,
        "false": False,
        "no": False,
        "off": False,
    }
    if text.strip().lower() not in words:
        raise ConfigError(f"{text!r} is neither true nor false")
    return words[text.strip().lower()]


def _read_list(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


_READ: Mapping[str, Callable[[str], Any]] = {
    "str": str,
    "int": int,
    "count": parse_count,
    "bytes": parse_bytes,
    "seconds": parse_seconds,
    "bool": _read_bool,
    "list": _read_list,
}
_KIND = {"int": "whole number"}

KNOBS: tuple[Knob, ...] = tuple(_rows())
"""One row per setting, in the order of this page."""


def _set(config: object, name: str, value: object) -> None:
    object.__setattr__(config, name, value)


def _text(name: str, value: object) -> None:
    if not isinstance(value, str) or not value:
        raise ConfigError(f"{name} must be a non-empty text, got {value!r}")


def _boolean(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise ConfigError(f"{name} must be true or false, got {value!r}")


def _one_of(name: str, value: object, allowed: Iterable[str]) -> None:
    if value not in (names := tuple(allowed)):
        raise ConfigError(f"{name} must be one of {', '.join(names)}, got {value!r}")


def _dtype(name: str, value: str, spellings: Mapping[str, str], later: tuple[str, ...] = ()) -> str:
    names = list(dict.fromkeys(spellings.values()))
    choice = f"{', '.join(names[:-1])} or {names[-1]}"
    if value in later:
        raise ConfigError(f"{name} is {value!r}: this build does not store it yet; use {choice}")
    if value not in spellings:
        raise ConfigError(f"{name} must be {choice}, got {value!r}")
    return spellings[value]


def _whole(name: str, value: object, low: int, high: int | None) -> None:
    limit = f"at least {low}" if high is None else f"from {low} to {high}"
    if (
        isinstance(value, bool)
        or not isinstance(value, int)
        or value < low
        or (high is not None and value > high)
    ):
        raise ConfigError(f"{name} must be a whole number {limit}, got {value!r}")


def _optional_whole(name: str, value: object, low: int, high: int | None) -> None:
    if value is not None:
        _whole(name, value, low, high)


def _number(name: str, value: object, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ConfigError(f"{name} must be a number from {low:g} to {high:g}, got {value!r}")
    if not low <= value <= high:
        raise ConfigError(f"{name} must be from {low:g} to {high:g}, got {value!r}")
