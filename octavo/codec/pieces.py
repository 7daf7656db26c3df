"""What bytes a token stands for, by the rules of the tokenizer's decoder.

A tokenizer's decoder is a chain of small steps over token texts. The chains that language models ship are
of three kinds, and each can be read token by token, which is what streaming needs:

    byte level       each character of a token stands for one byte
    sentencepiece    a mark such as "▁" stands for a space, "<0x0A>" for one byte, the first space is dropped
    plain            token texts joined by spaces (no decoder at all)

Other chains (WordPiece, CTC ...) look back at text already given out; a tokenizer with one is refused
at load.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from octavo.errors import LoadError

BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@dataclass(frozen=True, slots=True)
class PieceRule:
    """How token texts become bytes.

    to_bytes        bytes of a token that is not the first one
    first_to_bytes  bytes of the first token; many tokenizers drop a space there
    lead            text removed from the very front of the output, at most `max_lead` times
    max_lead        how many times
    """

    to_bytes: Callable[[str], bytes]
    first_to_bytes: Callable[[str], bytes]
    lead: str = ""
    max_lead: int = 0


def byte_alphabet() -> dict[str, int]:
    """The printable character that stands for each byte in byte-level vocabularies.

    Printable Latin-1 characters stand for themselves; the other bytes, in order, for the characters from
    U+0100 on.
    Source: Radford et al. 2019 (GPT-2), the released encoder.
    """
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {chr(byte): byte for byte in shown} | {chr(256 + i): byte for i, byte in enumerate(hidden)}


_BYTE_OF = byte_alphabet()


def _byte_level(token: str) -> bytes:
    """A token with any character outside the alphabet (an added token, say) stands for its own text."""
    values = [_BYTE_OF.get(char) for char in token]
    return token.encode() if None in values else bytes(value for value in values if value is not None)


def rule_for(decoder: object, where: str) -> PieceRule:
    """The rule of a `decoder` entry of tokenizer.json.

    where  the file, for messages
    Raises LoadError for a chain that cannot be read token by token.
    """
    if decoder is None:
        return PieceRule(lambda token: b" " + token.encode(), str.encode)
    steps = _flatten(decoder, where)
    kinds = [step.get("type") for step in steps]
    if kinds == ["ByteLevel"]:
        return PieceRule(_byte_level, _byte_level)
    return _sentencepiece(steps, where)


def _flatten(decoder: object, where: str) -> list[Mapping[str, object]]:
    if not isinstance(decoder, dict):
        raise LoadError(f"{where}: decoder must be an object or null, found {type(decoder).__name__}")
    if decoder.get("type") != "Sequence":
        return [decoder]
    return [step for inner in decoder.get("decoders", []) for step in _flatten(inner, where)]


def _sentencepiece(steps: list[Mapping[str, object]], where: str) -> PieceRule:
    """Replace, ByteFallback, Metaspace, Fuse and a Strip of the front, in any sensible order."""
    changes: list[tuple[bool, Callable[[str, bool], str]]] = []
    has_bytes, is_fused, lead, max_lead = False, False, "", 0
    for step in steps:
        kind = step.get("type")
        if kind == "ByteFallback":
            has_bytes = True
        elif kind == "Fuse":
            is_fused = True
        elif kind == "Strip" and is_fused and not step.get("stop"):
            lead, max_lead = str(step["content"]), _count(step.get("start"))
        elif kind in ("Replace", "Metaspace") and not is_fused:
            changes.append((has_bytes, _change(step, where)))
        else:
            raise LoadError(
                f"{where}: decoder step {kind!r} cannot be read token by token here; "
                "supported are ByteLevel, and chains of Replace, ByteFallback, Metaspace, Fuse, Strip (front)"
            )

    def to_bytes(token: str, first: bool) -> bytes:
        for after_bytes, change in changes:
            if not after_bytes:
                token = change(token, first)
        match = BYTE_TOKEN.fullmatch(token) if has_bytes else None
        if match:
            return bytes([int(match[1], 16)])
        for after_bytes, change in changes:
            if after_bytes:
                token = change(token, first)
        return token.encode()

    return PieceRule(
        lambda token: to_bytes(token, False), lambda token: to_bytes(token, True), lead, max_lead
    )


def _count(value: object) -> int:
    return value if isinstance(value, int) else 0


def _change(step: Mapping[str, object], where: str) -> Callable[[str, bool], str]:
    if step.get("type") == "Metaspace":
        mark = str(step["replacement"])
        first_space = " " if step.get("prepend_scheme", "always") == "never" else ""
        return lambda token, first: token.replace(mark, first_space if first else " ")
    pattern, content = step.get("pattern"), str(step.get("content"))
    if not isinstance(pattern, dict) or not isinstance(pattern.get("String"), str):
        raise LoadError(f"{where}: decoder step Replace must have a plain text pattern, found {pattern!r}")
    text = pattern["String"]
    return lambda token, _: token.replace(text, content)
