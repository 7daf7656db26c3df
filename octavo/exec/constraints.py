"""What each sequence may draw next, beyond what the model thinks of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.decode.grammar import Follower
from octavo.exec.executor import Start


@dataclass(frozen=True, slots=True)
class Restriction:
    """Of one draw.

    allowed     [V] bool, or None when every token is
    suppressed  token ids that must not come all the same
    """

    allowed: Tensor | None = None
    suppressed: frozenset[int] = frozenset()


class Constraints:
    """The grammars, allowed tokens and bad words of the sequences a worker holds."""

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self._vocab_size = vocab_size
        self._device = device
        self._followers: dict[int, Follower] = {}
        self._allowed: dict[int, Tensor] = {}

    def learn(self, start: Start) -> None:
        """A sequence, or a new epoch of one, begins; its grammar is at the end of the output so far."""
        self.forget(start.seq_id)
        if start.grammar is not None:
            self._followers[start.seq_id] = Follower(start.grammar, start.tokens[start.num_prompt :])
        if start.params.allowed_token_ids is not None:
            allowed = torch.zeros(self._vocab_size, dtype=torch.bool)
            allowed[list(start.params.allowed_token_ids)] = True
            self._allowed[start.seq_id] = allowed.to(self._device)

    def forget(self, seq_id: int) -> None:
        self._followers.pop(seq_id, None)
        self._allowed.pop(seq_id, None)

    def at(self, start: Start, output: Sequence[int]) -> Restriction:
        """For the token after `output`. Raises DeadEnd."""
        allowed = self._allowed.get(start.seq_id)
        follower = self._followers.get(start.seq_id)
        if follower is not None:
            by_grammar = self._by_grammar(follower, start)
            allowed = by_grammar if allowed is None else by_grammar & allowed
        return Restriction(allowed, _suppressed(start, len(output)) | _ends_of_bad_words(start, output))

    def drawn(self, start: Start, tokens: Sequence[int]) -> tuple[bool, ...]:
        """Take note of what has been drawn: one token, or the first tokens of several choices.

        The sequence goes on with the first of them. Returns for each whether its output is complete by its grammar;
        () where there is no grammar.
        """
        follower = self._followers.get(start.seq_id)
        if follower is None:
            return ()
        others = [follower.copy() for _ in tokens[1:]]
        return tuple(
            token in _ends(start) or one.accept(token)
            for one, token in zip([follower, *others], tokens, strict=True)
        )

    def _by_grammar(self, follower: Follower, start: Start) -> Tensor:
        mask = follower.mask()
        text = torch.from_numpy(mask.text)
        ends = _ends(start)
        if mask.may_end and ends:
            text = text.clone()
            text[list(ends)] = True
        return text.to(self._device)


def _ends(start: Start) -> frozenset[int]:
    """The model's end tokens, unless they are to be ignored."""
    return frozenset() if start.params.ignore_eos else start.end_token_ids


def _suppressed(start: Start, num_output: int) -> frozenset[int]:
    """Tokens that may not be drawn yet: everything that would end the output before min_tokens."""
    if num_output >= start.params.min_tokens:
        return frozenset()
    return _ends(start) | frozenset(start.params.stop_token_ids)


def _ends_of_bad_words(start: Start, output: Sequence[int]) -> frozenset[int]:
    """Last tokens of the bad words whose other tokens end the output."""
    return frozenset(
        word[-1]
        for word in start.bad_words
        if len(word) == 1 or tuple(output[len(output) - len(word) + 1 :]) == word[:-1]
    )
