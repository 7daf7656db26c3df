"""From the MODEL of a plan to a shape: a file or folder, a well-known name, a bundled model, a hub id."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from octavo.errors import LoadError

if TYPE_CHECKING:
    from octavo.arch.shape import Shape


def find(model: str | None) -> tuple[str, Shape]:
    """What to call it, and its shape. Well-known models need no network; of others on the hub only config.json is
    fetched. Raises LoadError."""
    from octavo.arch import known
    from octavo.arch.shape import Shape

    if model is None or model == "auto" or Path(model).expanduser().exists():
        path = config_file("auto" if model is None else model)
        name = path.stem if path.stem != "config" else path.parent.name
        return name, Shape.from_file(path)
    found = known.find(model)
    if found is not None:
        return found, known.shape(found)
    if "/" not in model and model not in _bundled():
        return model, known.shape(model)
    return model, Shape.from_file(config_file(model))


def config_file(model: str) -> Path:
    """The model's config.json, fetching nothing but that. Raises LoadError."""
    from octavo.engine.locate import HUB_ID, locate

    if Path(model).expanduser().exists() or model == "auto" or model in _bundled():
        return locate(model).config
    if not HUB_ID.fullmatch(model):
        return locate(model).config
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(model, "config.json"))
    except Exception as error:  # the hub client raises dozens of kinds; all mean the same here
        raise LoadError(f"config.json of {model!r} could not be fetched from the hub: {error}") from error


def _bundled() -> tuple[str, ...]:
    from octavo import bundled

    return tuple(bundled.names())
