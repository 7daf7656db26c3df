"""Log-probabilities as the two routes write them. Frames carry ids; the texts are looked up here."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from octavo.api import chat, completions
from octavo.codec.tokenizer import Tokenizer
from octavo.link import frames


def token_text(tokenizer: Tokenizer, token_id: int) -> str:
    """The token's text; `bytes:\\x..` when its bytes alone are no text, so that no two such tokens look alike."""
    if tokenizer.is_special(token_id):
        return tokenizer.piece(token_id) or ""
    raw = tokenizer.token_bytes(token_id)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def token_bytes(tokenizer: Tokenizer, token_id: int) -> list[int]:
    """The token's bytes; those of its name for a special token."""
    if tokenizer.is_special(token_id):
        return list((tokenizer.piece(token_id) or "").encode())
    return list(tokenizer.token_bytes(token_id))


def chat_logprobs(tokenizer: Tokenizer, entries: Sequence[frames.TokenLogprob]) -> chat.Logprobs:
    """The `logprobs` object of a chat choice."""
    return chat.Logprobs(
        content=[
            chat.TokenLogprob(
                token=token_text(tokenizer, entry.token_id),
                logprob=entry.logprob,
                bytes=token_bytes(tokenizer, entry.token_id),
                top_logprobs=[
                    chat.TopLogprob(
                        token=token_text(tokenizer, token),
                        logprob=logprob,
                        bytes=token_bytes(tokenizer, token),
                    )
                    for token, logprob in entry.top
                ],
            )
            for entry in entries
        ]
    )


class CompletionLogprobs:
    """The `logprobs` lists of one completion, in one piece or in several.

    text_offset counts characters of the returned text before the token. A character whose bytes are spread over
    tokens begins where its last token does.
    """

    def __init__(self, tokenizer: Tokenizer, num_top: int) -> None:
        self._tokenizer = tokenizer
        self._num_top = num_top
        self._offset = 0
        self._bytes = codecs.getincrementaldecoder("utf-8")("ignore")

    def lists(self, entries: Sequence[tuple[int, frames.TokenLogprob | None]]) -> completions.Logprobs:
        """Lists for the next tokens: (token id, entry), the entry None for a prompt's first token."""
        offsets = [self._advance(token) for token, _ in entries]
        return completions.Logprobs(
            tokens=[token_text(self._tokenizer, token) for token, _ in entries],
            token_logprobs=[None if entry is None else entry.logprob for _, entry in entries],
            top_logprobs=[self._top(entry) for _, entry in entries] if self._num_top else None,
            text_offset=offsets,
        )

    def _advance(self, token: int) -> int:
        offset = self._offset
        if not self._tokenizer.is_special(token):
            self._offset += len(self._bytes.decode(self._tokenizer.token_bytes(token)))
        return offset

    def _top(self, entry: frames.TokenLogprob | None) -> dict[str, float] | None:
        """The likeliest by text, and the chosen token even when it is not among them."""
        if entry is None:
            return None
        pairs = [*entry.top[: self._num_top], (entry.token_id, entry.logprob)]
        return {token_text(self._tokenizer, token): logprob for token, logprob in pairs}
