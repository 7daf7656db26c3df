"""From the MODEL a user names to a folder on disk."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from octavo import bundled
from octavo.errors import LoadError

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
HUB_FILES = ["*.json", "*.safetensors", "*.jinja"]


@dataclass(frozen=True, slots=True)
class Location:
    """Where a model lies.

    name       what it is called on the wire
    folder     holds config.json, and the weights and tokenizer unless `is_random`
    config     the config.json to read
    is_random  only a config.json was named: weights are drawn with a fixed seed
    """

    name: str
    folder: Path
    config: Path
    is_random: bool


def locate(model: str) -> Location:
    """Find a directory, a lone config.json, a bundled name, or a hub id (downloaded without pickles or code).

    Raises LoadError that lists what was tried.
    """
    if model == "auto":
        return _folder(bundled.DEFAULT, bundled.path())
    path = Path(model).expanduser()
    if path.is_file():
        if path.suffix != ".json":
            raise LoadError(
                f"{path} is a file but no config.json; name its folder, or a config.json for random weights"
            )
        return Location(path.stem if path.stem != "config" else path.parent.name, path.parent, path, True)
    if path.is_dir():
        return _folder(path.resolve().name, path)
    if model in bundled.names():
        return _folder(model, bundled.path(model))
    if HUB_ID.fullmatch(model):
        return _folder(model, _download(model))
    raise LoadError(
        f"no model {model!r}: it is no folder or file here, no bundled model ({', '.join(bundled.names())}),"
        f" and no hub id of the form owner/name"
    )


def _folder(name: str, folder: Path) -> Location:
    config = folder / "config.json"
    if not config.is_file():
        raise LoadError(f"{folder} has no config.json; a model folder in Hugging Face layout is needed")
    return Location(name, folder, config, False)


def _download(model: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model, allow_patterns=HUB_FILES))
    except Exception as error:  # the hub client raises dozens of kinds; all mean the same here
        raise LoadError(
            f"model {model!r} is no folder here and could not be fetched from the hub: {error}"
        ) from error
