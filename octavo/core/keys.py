"""The name of a cached block: a chained, typed, length-prefixed SHA-256 digest.

    seed  = H("kvk1" | TLV(fingerprint) | TLV(namespace))
    key_0 = H("kvb1" | seed      | u32 n | n tokens as little-endian u32 | TLV(extras))
    key_i = H("kvb1" | key_{i-1} | u32 n | n tokens as little-endian u32 | TLV(extras))

TLV is a type byte, a little-endian u32 length and the bytes, so no field can imitate another. A key names the
whole prefix that ends with its block, the weights and layout that computed it, and who may see it.
"""

from __future__ import annotations

import enum
import hashlib
import struct
from collections.abc import Iterable, Sequence

MAX_TOKEN = 2**32 - 1


class Extra(enum.IntEnum):
    """What besides its tokens decides a block's contents. The number is part of the key."""

    ADAPTER = 1
    MEDIA = 2
    EMBEDDING = 3
    POLICY = 4


_FINGERPRINT = 16
_NAMESPACE = 17


def seed_key(fingerprint: bytes, namespace: bytes) -> bytes:
    """The parent key of every first block under these weights, this layout and this namespace."""
    return hashlib.sha256(
        b"kvk1" + _typed(_FINGERPRINT, fingerprint) + _typed(_NAMESPACE, namespace)
    ).digest()


def block_key(parent: bytes, tokens: Sequence[int], extras: Iterable[tuple[Extra, bytes]] = ()) -> bytes:
    """Key of the block that holds `tokens` after the prefix named `parent` (32 bytes)."""
    body = struct.pack(f"<I{len(tokens)}I", len(tokens), *tokens)
    tail = b"".join(_typed(kind, value) for kind, value in sorted(extras))
    return hashlib.sha256(b"kvb1" + parent + body + tail).digest()


def _typed(kind: int, value: bytes) -> bytes:
    return struct.pack("<BI", kind, len(value)) + value
