"""Every setting: its range, its three spellings, and what is refused."""

from __future__ import annotations

import dataclasses

import pytest

from octavo.config import KNOBS, SECTIONS, EngineConfig, ModelConfig, ServerConfig
from octavo.config.knobs import nearest
from octavo.errors import ConfigError

BY_NAME = {knob.name: knob for knob in KNOBS}


def test_spellings_follow_from_the_name():
    knob = BY_NAME["kv_cache_dtype"]
    assert (knob.flag, knob.variable, knob.name) == (
        "--kv-cache-dtype",
        "OCTAVO_KV_CACHE_DTYPE",
        "kv_cache_dtype",
    )


def test_every_field_has_one_knob_and_names_are_unique():
    fields = [field.name for kind in SECTIONS.values() for field in dataclasses.fields(kind)]
    assert [knob.name for knob in KNOBS] == fields
    assert len(set(fields)) == len(fields)
    assert all(knob.help and len(knob.help) < 100 for knob in KNOBS)


def test_defaults_are_accepted_and_those_of_the_table():
    config, server = EngineConfig(), ServerConfig()
    for knob in KNOBS:
        part = server if knob.section == "server" else getattr(config, knob.section)
        assert getattr(part, knob.name) == knob.default


def test_flat_names_reach_their_sections():
    config = EngineConfig.of(model="x", max_num_seqs=4, block_size=32, num_threads=2)
    assert config.model.model == "x"
    assert config.scheduler.max_num_seqs == 4
    assert config.kv.block_size == 32
    assert config.runtime.num_threads == 2


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match=r"unknown setting 'max_num_seq'; did you mean 'max_num_seqs'\?"):
        EngineConfig.of(max_num_seq=4)
    with pytest.raises(ConfigError, match=r"unknown setting 'zzz'$"):
        EngineConfig.of(zzz=1)
    with pytest.raises(ConfigError, match="unknown setting 'port'"):
        EngineConfig.of(port=1)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("bf16", "bfloat16"),
        ("half", "float16"),
        ("float", "float32"),
        ("bfloat16", "bfloat16"),
        ("auto", "auto"),
    ],
)
def test_dtypes_have_one_name_inside(given, kept):
    assert EngineConfig.of(dtype=given).model.dtype == kept
    assert EngineConfig.of(kv_cache_dtype=given).kv.kv_cache_dtype == kept


@pytest.mark.parametrize(
    ("name", "value", "hint"),
    [
        ("model", "", "non-empty"),
        ("model", None, "non-empty"),
        ("dtype", "int8", "auto, bfloat16"),
        ("dtype", 3, "text"),
        ("dtype", [], "text"),
        ("quantization", "gptq", "does not read it yet"),
        ("quantization", "awq", "does not read it yet"),
        ("quantization", "int3", "no such weight format"),
        ("quantization", 8, "text"),
        ("kv_cache_dtype", "int8", "does not store it yet"),
        ("kv_cache_dtype", "fp8_e5m2", "does not store it yet"),
        ("dtype", "fp8", "must be auto, bfloat16"),
        ("kv_cache_dtype", "int9", "auto, bfloat16"),
        ("max_model_len", 0, "at least 1"),
        ("max_model_len", True, "whole number"),
        ("max_model_len", 1.5, "whole number"),
        ("seed", -1, "from 0"),
        ("seed", 2**63, "from 0"),
        ("load_format", "pickle", "safetensors"),
        ("block_size", 12, "power of two"),
        ("block_size", 2048, "from 1 to 1024"),
        ("memory_limit", 10, "at least"),
        ("memory_limit", "4GiB", "whole number"),
        ("num_kv_blocks", 1, "at least 2"),
        ("enable_prefix_caching", 1, "true or false"),
        ("max_num_seqs", 0, "from 1"),
        ("max_num_batched_tokens", 0, "at least 1"),
        ("max_chunk_tokens", -5, "at least 1"),
        ("device", "tpu", "auto, cpu, cuda"),
        ("device", "cuda:", "auto, cpu, cuda"),
        ("num_threads", 0, "from 1"),
        ("kernels", "sse2", "portable"),
        ("kernels", 2, "text"),
        ("batch_invariant", "no", "true or false"),
    ],
)
def test_engine_values_out_of_range_are_named(name, value, hint):
    with pytest.raises(ConfigError, match=hint) as caught:
        EngineConfig.of(**{name: value})
    assert str(caught.value).startswith(name)
    assert value in ("", None) or str(value) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("host", ""),
        ("port", 65536),
        ("port", -1),
        ("api_key", ("short",)),
        ("api_key", "not a tuple"),
        ("served_model_name", ""),
        ("max_queued_requests", 0),
        ("max_body_bytes", 10),
        ("keep_alive_s", 0.0),
        ("keep_alive_s", float("nan")),
        ("drain_s", -1.0),
    ],
)
def test_server_values_out_of_range_are_named(name, value):
    with pytest.raises(ConfigError, match=f"^{name} must"):
        ServerConfig(**{name: value})


@pytest.mark.parametrize("given", ["fp8", "fp8_e4m3"])
def test_fp8_has_one_name_inside(given):
    assert EngineConfig.of(kv_cache_dtype=given).kv.kv_cache_dtype == "fp8"


@pytest.mark.parametrize("value", [None, "int8", "int4", "w4a16", "w8a16", "fp8"])
def test_weights_may_be_quantized(value):
    assert EngineConfig.of(quantization=value).model.quantization == value
    assert BY_NAME["quantization"].parse(value or "none") == value


def test_keys_are_never_part_of_an_error():
    with pytest.raises(ConfigError) as caught:
        ServerConfig(api_key=("geheim",))
    assert "geheim" not in str(caught.value)


def test_configs_are_frozen_and_keyword_only():
    with pytest.raises(dataclasses.FrozenInstanceError):
        ModelConfig().model = "other"  # type: ignore[misc]
    with pytest.raises(TypeError):
        ModelConfig("x")  # type: ignore[misc]


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("memory_limit", "4GiB", 4 * 2**30),
        ("memory_limit", "auto", None),
        ("max_model_len", "4Ki", 4096),
        ("max_model_len", "none", None),
        ("quantization", "none", None),
        ("served_model_name", "auto", "auto"),
        ("enable_prefix_caching", "off", False),
        ("enable_prefix_caching", "TRUE", True),
        ("keep_alive_s", "500ms", 0.5),
        ("api_key", "aaaaaaaa, bbbbbbbb", ("aaaaaaaa", "bbbbbbbb")),
        ("port", "80", 80),
        ("model", "auto", "auto"),
    ],
)
def test_text_is_read_as_the_setting_needs(name, text, value):
    assert BY_NAME[name].parse(text) == value


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("port", "eighty"),
        ("memory_limit", "4G"),
        ("enable_prefix_caching", "maybe"),
        ("seed", "1.5"),
        ("drain_s", "5m"),
    ],
)
def test_text_that_cannot_be_read_is_refused_by_name(name, text):
    with pytest.raises(ConfigError, match=f"^{name}"):
        BY_NAME[name].parse(text)


@pytest.mark.parametrize(
    ("name", "value", "kept"),
    [
        ("memory_limit", "1MiB", 2**20),
        ("memory_limit", 2**20, 2**20),
        ("keep_alive_s", 5, 5.0),
        ("api_key", ["aaaaaaaa"], ("aaaaaaaa",)),
        ("max_model_len", "auto", None),
        ("enable_prefix_caching", False, False),
    ],
)
def test_toml_values_are_taken_as_they_are_or_with_units(name, value, kept):
    assert BY_NAME[name].accept(value) == kept


def test_nearest_says_nothing_when_nothing_is_near():
    assert nearest("abc", ["xyz"]) == ""
    assert nearest("prot", ["port", "host"]) == "; did you mean 'port'?"
