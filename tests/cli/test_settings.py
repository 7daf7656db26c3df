"""Flag before variable before file before default, and where each value came from."""

from __future__ import annotations

import argparse

import pytest

from octavo.cli import settings
from octavo.config import KNOBS, SECTIONS
from octavo.errors import ConfigError


def test_each_source_goes_before_the_next():
    every = {"flags": {"port": "1"}, "variables": {"OCTAVO_PORT": "2"}, "file": {"port": 3}}
    expected = [
        ("flags", 1, "flag", "--port"),
        ("variables", 2, "variable", "OCTAVO_PORT"),
        ("file", 3, "file", "x.toml"),
    ]
    for drop, (_, port, kind, where) in enumerate(expected):
        given = {name: ({} if i < drop else value) for i, (name, value) in enumerate(every.items())}
        found = settings.merge(given["flags"], given["variables"], given["file"], "x.toml")
        assert found.server.port == port
        assert found.origins["port"] == settings.Origin(kind, where)
    found = settings.merge({}, {}, {})
    assert found.server.port == 8000
    assert found.origins["port"] == settings.Origin("default", "default")


def test_every_setting_has_an_origin():
    assert set(settings.merge({}, {}, {}).origins) == {knob.name for knob in KNOBS}


@pytest.mark.parametrize(
    ("flags", "variables", "file", "hint"),
    [
        ({}, {"OCTAVO_PROT": "1"}, {}, "OCTAVO_PROT; did you mean 'OCTAVO_PORT'"),
        ({}, {}, {"kv_cache_dtyp": "x"}, "'kv_cache_dtyp' in my.toml; did you mean 'kv_cache_dtype'"),
        ({}, {}, {"server": {"port": 1}}, "'server' in my.toml"),
        ({"port": "many"}, {}, {}, r"port.*\(from --port\)"),
        ({}, {"OCTAVO_PORT": "70000"}, {}, r"port must.*70000.*\(from OCTAVO_PORT\)"),
        ({}, {}, {"port": "80"}, r"port must.*'80'.*\(from my.toml\)"),
        ({}, {}, {"memory_limit": "4G"}, r"memory_limit.*4GiB.*\(from my.toml\)"),
        ({"quantization": "gptq"}, {}, {}, r"quantization is 'gptq'.*\(from --quantization\)"),
    ],
)
def test_what_is_wrong_is_named_with_its_source(flags, variables, file, hint):
    with pytest.raises(ConfigError, match=hint):
        settings.merge(flags, variables, file, "my.toml")


def parse(*words: str, wanted: object = SECTIONS) -> argparse.Namespace:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("model", nargs="?")
    settings.add_flags(parser, wanted)  # type: ignore[arg-type]
    return parser.parse_args(words)


def test_flags_files_and_the_environment_meet(tmp_path, monkeypatch):
    file = tmp_path / "octavo.toml"
    file.write_text('port = 81\nmax_num_seqs = 3\nmemory_limit = "1GiB"\nenable_prefix_caching = false\n')
    monkeypatch.setenv("OCTAVO_PORT", "82")
    monkeypatch.setenv("OCTAVO_SHARED_DATA", "/nowhere")
    found = settings.read(parse("some/model", "--config", str(file), "--dtype", "bf16"))
    assert (found.server.port, found.engine.scheduler.max_num_seqs) == (82, 3)
    assert found.engine.kv.memory_limit == 2**30
    assert found.engine.kv.enable_prefix_caching is False
    assert found.engine.model.model == "some/model"
    assert found.engine.model.dtype == "bfloat16"
    kinds = {name: origin.kind for name, origin in found.origins.items() if origin.kind != "default"}
    assert kinds == {
        "port": "variable", "max_num_seqs": "file", "memory_limit": "file", "enable_prefix_caching": "file",
        "model": "flag", "dtype": "flag",
    }  # fmt: skip
    monkeypatch.setenv("OCTAVO_CONFIG", str(file))
    assert settings.read(parse()).engine.scheduler.max_num_seqs == 3
    monkeypatch.setenv("OCTAVO_BATCH_INVARIANT", "off")
    assert settings.read(parse()).engine.runtime.batch_invariant is False


def test_switches_can_be_turned_both_ways():
    assert settings.read(parse("--no-enable-prefix-caching")).engine.kv.enable_prefix_caching is False
    assert settings.read(parse("--enable-prefix-caching")).engine.kv.enable_prefix_caching is True
    assert settings.read(parse()).engine.runtime.batch_invariant is True
    assert settings.read(parse("--no-batch-invariant")).engine.runtime.batch_invariant is False


def test_two_models_are_one_too_many():
    assert settings.read(parse("a", "--model", "a")).engine.model.model == "a"
    with pytest.raises(ConfigError, match="two models"):
        settings.read(parse("a", "--model", "b"))


@pytest.mark.parametrize(
    ("text", "hint"), [("port = ", "not TOML"), (None, "cannot read"), (b"\xff", "not TOML")]
)
def test_files_that_cannot_be_read(tmp_path, text, hint):
    path = tmp_path / "x.toml"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError, match=hint):
        settings.read_file(str(path))


def test_flags_of_a_section_only():
    with pytest.raises(SystemExit):
        parse("--port", "1", wanted=("model",))
