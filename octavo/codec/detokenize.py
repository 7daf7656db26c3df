"""Tokens to text, one token at a time."""

from __future__ import annotations

import codecs
from typing import Protocol

from octavo.codec.pieces import PieceRule


class Pieces(Protocol):
    """What a detokenizer needs to know of a tokenizer."""

    rule: PieceRule

    def piece(self, token_id: int) -> str | None:
        """The token's text in the vocabulary; None when the id stands for nothing."""

    def is_special(self, token_id: int) -> bool:
        """Whether the token marks structure rather than text."""


class Detokenizer:
    """Gives out the text of a growing sequence of tokens as soon as it is certain.

    A character spread over several tokens comes out with its last byte; until then at most three bytes are
    held back. Bytes that can no longer become a character come out as U+FFFD, one for each maximal broken
    run, as the Unicode standard recommends (section 3.9, practice for replacing). The texts of all `push`
    calls and the final `flush`, put together, are `Tokenizer.decode` of the same tokens. Each push takes
    time in proportion to its token.

    continues  other text goes before, so the first token keeps the space that many tokenizers drop at the
               front of a text
    """

    def __init__(
        self, tokenizer: Pieces, skip_special_tokens: bool = True, *, continues: bool = False
    ) -> None:
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._is_first = not continues
        self._leads_left = 0 if continues else tokenizer.rule.max_lead

    def push(self, token_id: int) -> str:
        """Text that this token makes certain, often "" in the middle of a character."""
        piece = self._tokenizer.piece(token_id)
        if piece is None or (self._skip_special_tokens and self._tokenizer.is_special(token_id)):
            return ""
        rule = self._tokenizer.rule
        data = rule.first_to_bytes(piece) if self._is_first else rule.to_bytes(piece)
        self._is_first = False
        return self._without_lead(self._utf8.decode(data))

    def flush(self) -> str:
        """What is left when no token follows: "" or U+FFFD for a character that was cut."""
        return self._without_lead(self._utf8.decode(b"", final=True))

    def _without_lead(self, text: str) -> str:
        lead = self._tokenizer.rule.lead
        while self._leads_left and text:
            if not text.startswith(lead):
                self._leads_left = 0
                break
            text = text.removeprefix(lead)
            self._leads_left -= 1
        return text
