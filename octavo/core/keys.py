"""The name of a cached block: a chained, typed, length-prefixed SHA-256 digest.

    seed  = H("kvk1" | TLV(fingerprint) | TLV(namespace))
    key_0 = H("kvb1" | seed      | u32 n | n tokens as little-endian u32 | TLV(extras))
    key_i = H("kvb1" | key_{i-1} | u32 n | n tokens as little-endian u32 | TLV(extras))

Where a chain leaves a prefix that everybody shares for blocks of its own, the parent is

    border = H("kvr1" | key of the shared prefix | seed of its own)

TLV is a type byte, a little-endian u32 length and the bytes, so no field can imitate another. A key names the
whole prefix that ends with its block, the weights and layout that computed it, and who may see it.
"""

from __future__ import annotations

import enum
import hashlib
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

MAX_TOKEN = 2**32 - 1
PUBLIC = b"public"
"""The namespace of prefixes that everybody shares."""


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


@dataclass(frozen=True, slots=True)
class Chain:
    """The full blocks of a sequence from the first one on: their keys, and their tokens as little-endian u32."""

    keys: list[bytes] = field(default_factory=list)
    blocks: list[bytes] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, part: slice) -> Chain:
        return Chain(self.keys[part], self.blocks[part])

    def extend(self, parent: bytes, tokens: Sequence[int], block_tokens: int) -> None:
        """Add the full blocks of `tokens`, with `block_key` of each, the first after the prefix named `parent`."""
        packed = pack(tokens)
        start = struct.pack("<I", block_tokens)
        for first in range(0, len(packed) - 4 * block_tokens + 1, 4 * block_tokens):
            block = packed[first : first + 4 * block_tokens]
            parent = hashlib.sha256(b"kvb1" + parent + start + block).digest()
            self.keys.append(parent)
            self.blocks.append(block)


def pack(tokens: Sequence[int]) -> bytes:
    return struct.pack(f"<{len(tokens)}I", *tokens)


@dataclass(frozen=True, slots=True)
class Lineage:
    """Who may find the blocks of one chain: everybody the first `num_public`, holders of its namespace the others.

    seed         key of its own namespace, `public_seed` that of everybody's
    num_public   leading blocks that are everybody's
    """

    seed: bytes
    public_seed: bytes
    num_public: int = 0

    def realm(self, index: int) -> bytes:
        """The seed of those who may find block `index`."""
        return self.public_seed if index < self.num_public else self.seed

    def realm_end(self, index: int, count: int) -> int:
        """Where the blocks from `index` on that have one realm end, of `count`."""
        return min(count, self.num_public) if index < self.num_public else count

    def extend(self, chain: Chain, tokens: Sequence[int], block_tokens: int, count: int) -> None:
        """Add to `chain` until it holds the first `count` full blocks of `tokens`."""
        while (index := len(chain)) < count:
            parent = chain.keys[-1] if index else self.realm(0)
            if index and index == self.num_public:
                parent = border_key(parent, self.seed)
            end = self.realm_end(index, count)
            chain.extend(parent, tokens[index * block_tokens : end * block_tokens], block_tokens)


def border_key(parent: bytes, seed: bytes) -> bytes:
    """What stands for the prefix named `parent` to those who alone may find what follows it."""
    return hashlib.sha256(b"kvr1" + parent + seed).digest()


def _typed(kind: int, value: bytes) -> bytes:
    return struct.pack("<BI", kind, len(value)) + value
