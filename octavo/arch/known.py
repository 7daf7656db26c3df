"""Well-known models by name: the fields of their public configs that change what is counted, and their hub ids.

The bundled list is `known.json`, one model a line. Every total of it is compared with transformers' own model.
"""

from __future__ import annotations

import difflib
import json
from functools import cache
from pathlib import Path
from typing import Any

from octavo.arch.shape import Shape
from octavo.errors import LoadError


@cache
def _models() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_name("known.json").read_text("utf-8"))
    return found


def names() -> tuple[str, ...]:
    return tuple(_models())


def hub_id(name: str) -> str:
    """Where the model's config is published."""
    return str(_models()[name]["hub"])


def config(name: str) -> dict[str, Any]:
    """The fields of a known model, as its `config.json` has them."""
    return dict(_models()[name]["config"])


def find(name: str) -> str | None:
    """The name in the list of a name or hub id in any case, or None."""
    lower = name.lower()
    for known, model in _models().items():
        if lower in (known, str(model["hub"]).lower()):
            return known
    return None


def shape(name: str) -> Shape:
    """Raises LoadError that names the nearest ones."""
    known = find(name)
    if known is None:
        close = difflib.get_close_matches(name.lower(), names(), n=3, cutoff=0.5)
        nearest = f"; near it are {', '.join(close)}" if close else ""
        raise LoadError(
            f"{name!r} is no known model{nearest}; `octavo plan memory --list` names all, and a config.json does too"
        )
    return Shape.from_config(config(known), source=f"known model {known}")
