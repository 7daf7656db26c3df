"""One value for each setting, from flags, variables, a file and defaults, and where it came from."""

from __future__ import annotations

import argparse
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from octavo.cli import env
from octavo.config import KNOBS, EngineConfig, ServerConfig, sections
from octavo.config.knobs import Knob, nearest
from octavo.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a value came from.

    kind   "flag", "variable", "file" or "default"
    where  the flag, the variable, or the file, as the user wrote it
    """

    kind: str
    where: str


@dataclass(frozen=True, slots=True)
class Settings:
    """Every setting, checked, with its origin by name."""

    engine: EngineConfig
    server: ServerConfig
    origins: Mapping[str, Origin]

    def value(self, knob: Knob) -> Any:
        part = self.server if knob.section == "server" else getattr(self.engine, knob.section)
        return getattr(part, knob.name)


def add_flags(parser: argparse.ArgumentParser, wanted: Iterable[str], also: Iterable[str] = ()) -> None:
    """A flag for each setting of the sections `wanted` and those named in `also`, `--config`, and help that names
    the variable.
    """
    wanted, also = set(wanted), set(also)
    parser.add_argument("--config", metavar="FILE.toml", help=f"settings file [{env.CONFIG_VARIABLE}]")
    group = parser.add_argument_group("settings")
    for knob in KNOBS:
        if knob.section not in wanted and knob.name not in also:
            continue
        default = "" if knob.default in (None, ()) else f", default {knob.default}"
        text = f"{knob.help} [{knob.variable}{default}]".replace("%", "%%")
        if knob.text == "bool":
            group.add_argument(
                knob.flag,
                dest=f"knob_{knob.name}",
                action=argparse.BooleanOptionalAction,
                default=None,
                help=text,
            )
        else:
            group.add_argument(
                knob.flag, dest=f"knob_{knob.name}", metavar=knob.text.upper(), default=None, help=text
            )


def read(args: argparse.Namespace) -> Settings:
    """Settings of a command whose parser went through `add_flags`. A MODEL argument counts as the flag.

    Raises ConfigError.
    """
    flags = {
        knob.name: value for knob in KNOBS if (value := getattr(args, f"knob_{knob.name}", None)) is not None
    }
    model = getattr(args, "model", None)
    if model is not None and flags.setdefault("model", model) != model:
        raise ConfigError(f"two models are named, {model!r} and --model {flags['model']!r}; leave one out")
    path = getattr(args, "config", None) or env.config_file()
    return merge(flags, env.variables(), read_file(path) if path else {}, str(path))


def read_file(path: str) -> dict[str, Any]:
    """The keys of a TOML file. Raises ConfigError."""
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the configuration file {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"the configuration file {path} is not TOML: {error}") from error


def merge(
    flags: Mapping[str, Any], variables: Mapping[str, str], file: Mapping[str, Any], file_name: str = "file"
) -> Settings:
    """Flag before variable before file before default.

    flags  by setting name; texts, or booleans for switches
    Raises ConfigError for an unknown name anywhere, with the nearest known one.
    """
    by_name = {knob.name: knob for knob in KNOBS}
    by_variable = {knob.variable: knob for knob in KNOBS}
    for variable in variables:
        if variable not in by_variable:
            raise ConfigError(f"unknown variable {variable}{nearest(variable, by_variable)}")
    for key in file:
        if key not in by_name:
            raise ConfigError(f"unknown key {key!r} in {file_name}{nearest(key, by_name)}")
    values: dict[str, Any] = {}
    origins: dict[str, Origin] = {}
    for knob in KNOBS:
        if knob.name in flags:
            given = flags[knob.name]
            values[knob.name] = _from(knob.flag, knob.parse, given) if isinstance(given, str) else given
            origins[knob.name] = Origin("flag", knob.flag)
        elif knob.variable in variables:
            values[knob.name] = _from(knob.variable, knob.parse, variables[knob.variable])
            origins[knob.name] = Origin("variable", knob.variable)
        elif knob.name in file:
            values[knob.name] = _from(file_name, knob.accept, file[knob.name])
            origins[knob.name] = Origin("file", file_name)
        else:
            origins[knob.name] = Origin("default", "default")
    try:
        parts = sections(values, KNOBS)
    except ConfigError as error:
        raise ConfigError(f"{error}{_blame(str(error), origins)}") from None
    server = parts.pop("server")
    return Settings(EngineConfig(**parts), server, origins)


def _from(where: str, read: Any, given: Any) -> Any:
    try:
        return read(given)
    except ConfigError as error:
        raise ConfigError(f"{error} (from {where})") from None


def _blame(message: str, origins: Mapping[str, Origin]) -> str:
    """Range errors begin with the setting's name: say where its value came from."""
    origin = origins.get(message.split(maxsplit=1)[0])
    return "" if origin is None or origin.kind == "default" else f" (from {origin.where})"
