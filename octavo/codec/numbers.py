"""The tokenizer of a model that has none: its words are the token ids themselves."""

from __future__ import annotations

from collections.abc import Iterable

import tokenizers
from tokenizers import models

from octavo.codec.tokenizer import MAX_CHARS, Tokenizer
from octavo.errors import PromptTooLong, RequestError


class NumberTokenizer(Tokenizer):
    """Reads and writes token ids as numbers with spaces between, so that any shape can be tried without files."""

    def __init__(self, vocab_size: int, end_ids: Iterable[int] = ()) -> None:
        words = {str(token): token for token in range(vocab_size)}
        super().__init__(tokenizers.Tokenizer(models.WordLevel(words)), end_ids=end_ids)

    def encode(
        self,
        text: str,
        add_special_tokens: bool = True,  # noqa: ARG002
        *,
        max_chars: int = MAX_CHARS,
    ) -> list[int]:
        """Token ids of numbers. There are no special tokens to add. Raises RequestError for any other word."""
        if len(text) > max_chars:
            raise PromptTooLong(
                f"the prompt has {len(text)} characters, at most {max_chars} are read; shorten it",
                param="prompt",
            )
        words = text.split()
        for word in words:
            if not (word.isascii() and word.isdigit() and int(word) < self.vocab_size):
                raise RequestError(
                    f"{word!r} is no token id below {self.vocab_size}: this model came without a tokenizer,"
                    f" so its text is token ids, such as '17 4 250'",
                    param="prompt",
                )
        return [int(word) for word in words]
