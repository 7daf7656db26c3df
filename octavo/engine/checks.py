"""What a request is refused for before the scheduler hears of it."""

from __future__ import annotations

from collections.abc import Sequence

from octavo.codec.tokenizer import Tokenizer
from octavo.core.sequence import SamplingParams
from octavo.errors import RequestError, Unsupported


def check_types(params: object, priority: object, namespace: object) -> None:
    """Refuse what would break the loop later, and everybody else's requests with it."""
    if not isinstance(params, SamplingParams):
        raise RequestError(
            f"sampling_params must be SamplingParams, got {type(params).__name__}", param="sampling_params"
        )
    if isinstance(priority, bool) or not isinstance(priority, int):
        raise RequestError(f"priority must be a whole number, got {priority!r}", param="priority")
    if not isinstance(namespace, bytes):
        raise RequestError(f"namespace must be bytes, got {namespace!r}", param="namespace")


def check_request(prompt: Sequence[int], params: SamplingParams, vocab_size: int) -> None:
    """Raises RequestError for token ids the model does not have, and Unsupported for what does not go together."""
    if not prompt:
        raise RequestError("the prompt is empty; send at least one token", param="prompt")
    for token in prompt:
        if not 0 <= token < vocab_size:
            raise RequestError(
                f"prompt token {token} is outside the vocabulary of {vocab_size} tokens", param="prompt"
            )
    for name in ("stop_token_ids", "logit_bias", "allowed_token_ids"):
        for token in getattr(params, name) or ():
            if token >= vocab_size:
                raise RequestError(
                    f"token id {token} is outside the vocabulary of {vocab_size} tokens", param=name
                )
    if params.beam_width is not None and params.grammar is not None:
        raise Unsupported("a grammar cannot be combined with beam_width", param="grammar")
    if params.beam_width is not None and params.stop:
        raise Unsupported("stop texts cannot be combined with beam_width; use stop_token_ids", param="stop")
    if params.beam_width is not None and params.logprobs is not None:
        raise Unsupported(
            "logprobs cannot be combined with beam_width; each beam comes with its cumulative_logprob",
            param="logprobs",
        )


def bad_words_of(
    params: SamplingParams, tokenizer: Tokenizer, vocab_size: int
) -> tuple[tuple[int, ...], ...]:
    """The tokens of each bad word as it stands at the front of a text, and after a space. Raises RequestError.

    One with a token that the model does not have cannot come anyway, and is left out.
    """
    found: dict[tuple[int, ...], None] = {}
    for word in params.bad_words:
        for text in (word, f" {word.lstrip()}"):
            tokens = tuple(tokenizer.encode(text, add_special_tokens=False))
            if tokens:
                if max(tokens) < vocab_size:
                    found[tokens] = None
            elif text is word:
                raise RequestError(f"the bad word {word!r} has no tokens", param="bad_words")
    return tuple(found)
