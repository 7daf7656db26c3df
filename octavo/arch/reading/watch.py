"""A config whose fields know whether they were read, so that none that counts is passed over in silence."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from octavo.arch.fields import Fields
from octavo.arch.reading.inert import INERT

_SIZES = re.compile(
    r"(^|_)(num|n|d|heads?|layers?|experts?|dims?|size|sizes|width|ranks?|lora|bias|biases|window|norms?|kernel|conv|"
    r"groups?|state|ssm|mamba|moe|mlp|ffn|attn|attention|qk|kv|index|indexer|shared|share|sharing|tie|tied|proj|"
    r"projectors?|projection|embed|embedding|hidden|inner|intermediate|altup|laurel|mtp|nextn|ngram|engram|hyper|"
    r"blocks?|memory|sinks?|gates?|gated|adapter)(_|$)"
)
"""Words of a field's name by which it may change what is counted."""


class Watched(Fields):
    """Fields that remember which of them were asked for."""

    def __init__(self, values: Mapping[str, Any], source: str, prefix: str = "") -> None:
        super().__init__(_Recording(values), source, prefix)
        self._inner: dict[str, Watched] = {}

    def inner(self, name: str) -> Watched | None:
        if name in self._inner:
            return self._inner[name]
        found = super().inner(name)
        if found is None:
            return None
        self._inner[name] = Watched(found.values, found.source, found.prefix)
        return self._inner[name]

    def first(self, *names: str) -> str:
        """The first of several names for one thing that the file has; the first at all when it has none."""
        return next((name for name in names if self.has(name)), names[0])

    def listed(self, name: str, length: int | None = None) -> list[Any]:
        """A list, of so many entries where that is known."""
        value = self.values.get(name)
        if not isinstance(value, list) or (length is not None and len(value) != length):
            raise self.fail(name, "a list" if length is None else f"a list of {length} entries")
        return value

    def skip(self, *names: str) -> None:
        """Pass over fields that repeat what others say, or have no use beside them."""
        assert isinstance(self.values, _Recording)
        self.values.read.update(names)

    def refuse_unread(self, family: str) -> None:
        """Raise LoadError for a field nobody asked for that may change what is counted."""
        assert isinstance(self.values, _Recording)
        for name, value in dict(self.values).items():
            if name in self.values.read or name in INERT or not _SIZES.search(name) or _says_nothing(value):
                continue
            if name.endswith(("_token_id", "_token_ids", "_token", "_config", "_dtype")):
                continue
            raise self.fail(
                name, f"nothing: no {family} model is known to have it, and it may change what is counted"
            )
        for name, inner in self._inner.items():
            if name not in ("rope_parameters", "rope_scaling"):
                inner.refuse_unread(family)


class _Recording(dict[str, Any]):
    def __init__(self, values: Mapping[str, Any]) -> None:
        super().__init__(values)
        self.read: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        self.read.add(key)
        return super().get(key, default)

    def __getitem__(self, key: str) -> Any:
        self.read.add(key)
        return super().__getitem__(key)

    def __contains__(self, key: object) -> bool:
        self.read.add(str(key))
        return super().__contains__(key)


def _says_nothing(value: Any) -> bool:
    return value is None or value is False or value in (0, "", "auto", [], {})
