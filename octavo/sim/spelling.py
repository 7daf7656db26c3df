"""Token ids for prompts and answers that are known by names alone, so that they share what the named ones shared.

A recording has a name for each token, which stands for everything from the beginning up to it: two sequences are equal
as far as their names are. What a sequence begins with, and an earlier one had, prompt or answer, gets the ids it has
there, to the token; the rest gets ids that nothing else has.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from octavo.sim.workload import Piece, TokenSpace

BLOCK_TOKENS = 16
"""Names are looked up block by block; within the first block that is not known they are compared one by one."""

Key = tuple[str, int]
"""A realm, and the name of a block's last token."""


@dataclass(frozen=True, slots=True)
class Spelled:
    """A request's tokens by names.

    prompt, output  a name for each token
    space           who else may find it in the cache: those of the same space, and everybody the first `num_public`
    """

    prompt: array[int]
    output: array[int]
    space: str = ""
    num_public: int = 0

    def realm(self, begin: int) -> str:
        """Who may find the block that begins there."""
        return "" if begin + BLOCK_TOKENS <= self.num_public else self.space


@dataclass(slots=True)
class Spelling:
    """Ids by the names that have been given so far, in order of arrival.

    ids    of a block's tokens; `after`: blocks seen after one, the first after None, each with its realm and names
    """

    space: TokenSpace
    ids: dict[Key, tuple[int, ...]] = field(default_factory=dict)
    after: dict[Key | None, list[tuple[str, array[int], tuple[int, ...]]]] = field(default_factory=dict)

    def pieces(self, spelled: Spelled, num_output_tokens: int) -> tuple[tuple[Piece, ...], Piece]:
        """Runs of ids of the prompt, and of the answer, which later prompts may go on after."""
        names = spelled.prompt
        ids, before = list[int](), None
        for begin in range(0, len(names) - BLOCK_TOKENS + 1, BLOCK_TOKENS):
            key = (spelled.realm(begin), names[begin + BLOCK_TOKENS - 1])
            known = self.ids.get(key)
            if known is None:
                break
            ids += known
            before = key
        ids += self._begun(spelled, before, len(ids))
        prompt = list(runs(ids))
        if len(ids) < len(names):
            prompt.append(self.space.take(len(names) - len(ids)))
        output = self.space.take(num_output_tokens)
        self._learn(spelled, (*prompt, output))
        return tuple(prompt), output

    def _begun(self, spelled: Spelled, before: Key | None, begin: int) -> tuple[int, ...]:
        """Ids of the tokens that some known block begins with as well."""
        wanted, found = spelled.prompt[begin : begin + BLOCK_TOKENS], tuple[int, ...]()
        for realm, names, ids in self.after.get(before, ()):
            if realm == spelled.realm(begin):
                count = next(
                    (n for n, (a, b) in enumerate(zip(wanted, names, strict=False)) if a != b), len(wanted)
                )
                found = max(found, ids[:count], key=len)
        return found

    def _learn(self, spelled: Spelled, whole: Sequence[Piece]) -> None:
        """The last token of an answer is drawn and never computed: no cache has it."""
        names = spelled.prompt + spelled.output[:-1]
        ids = [one for first, count in whole for one in range(first, first + count)]
        before: Key | None = None
        for begin in range(0, min(len(names), len(ids)) - BLOCK_TOKENS + 1, BLOCK_TOKENS):
            end, realm = begin + BLOCK_TOKENS, spelled.realm(begin)
            key = (realm, names[end - 1])
            if key not in self.ids:
                self.ids[key] = tuple(ids[begin:end])
                self.after.setdefault(before, []).append((realm, names[begin:end], self.ids[key]))
            before = key


def runs(ids: Sequence[int]) -> Iterator[Piece]:
    """The same ids as runs of consecutive ones."""
    begin = 0
    for place in range(1, len(ids) + 1):
        if place == len(ids) or ids[place] != ids[place - 1] + 1:
            yield ids[begin], place - begin
            begin = place
