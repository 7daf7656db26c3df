"""The models that ship with the package, as folders in Hugging Face layout."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from octavo.errors import LoadError

DEFAULT = "quire"
"""The model used where none is named."""


def _root() -> Path:
    return Path(str(files(__name__)))


def names() -> tuple[str, ...]:
    """Names of the bundled models, sorted."""
    return tuple(sorted(folder.parent.name for folder in _root().glob("*/config.json")))


def path(name: str = DEFAULT) -> Path:
    """The folder of a bundled model. Raises LoadError for a name that is not bundled."""
    folder = _root() / name
    if name not in names():
        raise LoadError(f"no bundled model is named {name!r}; there are: {', '.join(names()) or 'none'}")
    return folder
