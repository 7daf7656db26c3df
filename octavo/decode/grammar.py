"""Outputs that follow a grammar: which tokens may come next, and when nothing may.

A grammar is compiled once and kept; every sequence follows it with a matcher of its own. The state of a matcher
depends on the sequence's output alone, so it is made again from that output whenever a worker needs it.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import llguidance
import numpy as np
from numpy.typing import NDArray

from octavo.codec.grammar import Vocabulary, matcher
from octavo.codec.tokenizer import Tokenizer
from octavo.core.sequence import Grammar
from octavo.errors import OctavoError

MAX_BYTES = 64 * 2**20
BASE_BYTES, BYTES_PER_CHAR = 128 * 1024, 64
"""What a compiled grammar is taken to hold; llguidance does not say. Measured: 35 to 95 kB each, for sources of 125 to
1300 characters."""

_T = TypeVar("_T")


class DeadEnd(ValueError):
    """A sequence cannot go on: its grammar allows no token, or asks for more work than one step may take."""


@dataclass(frozen=True, slots=True)
class Mask:
    """What may come next.

    text     [V] bool: tokens that go on with the output
    may_end  whether the output may end here instead
    """

    text: NDArray[np.bool_]
    may_end: bool


class Grammars:
    """Compiled grammars of one model, the least recently used given up when they take more than `max_bytes`.

    Safe for use by several threads; compiling holds no lock.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, max_bytes: int = MAX_BYTES) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._max_bytes = max_bytes
        self._kept: OrderedDict[Grammar, Compiled] = OrderedDict()
        self._num_bytes = 0
        self._lock = threading.Lock()
        self._vocabulary: Vocabulary | None = None
        self._vocabulary_lock = threading.Lock()

    @property
    def num_bytes(self) -> int:
        """What the kept ones are taken to hold."""
        return self._num_bytes

    def __len__(self) -> int:
        return len(self._kept)

    def compiled(self, grammar: Grammar) -> Compiled:
        """Raises InvalidGrammar, GrammarTooComplex, and Unsupported for a model without a tokenizer."""
        with self._lock:
            if grammar in self._kept:
                self._kept.move_to_end(grammar)
                return self._kept[grammar]
        made = self.compiled_anew(grammar)
        with self._lock:
            if grammar not in self._kept:
                self._kept[grammar] = made
                self._num_bytes += made.num_bytes
            while self._num_bytes > self._max_bytes and len(self._kept) > 1:
                _, dropped = self._kept.popitem(last=False)
                self._num_bytes -= dropped.num_bytes
        return made

    def compiled_anew(self, grammar: Grammar) -> Compiled:
        """The same, sharing nothing with those compiled before, and not kept."""
        vocabulary = self._of_model()
        return Compiled(grammar, vocabulary, matcher(grammar, vocabulary), self)

    def give_up(self, compiled: Compiled) -> None:
        """Keep this one no longer: it has grown to its limits."""
        with self._lock:
            if self._kept.get(compiled.grammar) is compiled:
                del self._kept[compiled.grammar]
                self._num_bytes -= compiled.num_bytes

    def _of_model(self) -> Vocabulary:
        with self._vocabulary_lock:
            if self._vocabulary is None:
                self._vocabulary = Vocabulary(self._tokenizer, self._vocab_size)
            return self._vocabulary


@dataclass(frozen=True, slots=True, eq=False)
class Compiled:
    """A grammar made ready for one vocabulary. `start` stays at the beginning; followers copy it."""

    grammar: Grammar
    vocabulary: Vocabulary
    start: llguidance.LLMatcher
    home: Grammars

    @property
    def num_bytes(self) -> int:
        """An estimate, generous rather than exact."""
        return BASE_BYTES + BYTES_PER_CHAR * len(self.grammar.source)


class Follower:
    """One sequence on its way through a grammar. Belongs to the thread that carries out steps.

    output  tokens drawn so far, end tokens left out; they are gone through first

    Copies of one matcher share what llguidance has worked out about the grammar. When that has reached its limits,
    the sequence goes on with a grammar compiled for it alone, so that it does not fail for what others have written.
    """

    def __init__(self, compiled: Compiled, output: Sequence[int] = ()) -> None:
        self._compiled = compiled
        self._output = list(output)
        self._matcher = compiled.start.deep_copy()
        self._is_alone = False
        self._mask: Mask | None = None
        self._problem: str | None = None
        _guarded(lambda: self._matcher.consume_tokens(self._output))

    def copy(self) -> Follower:
        """Another follower at the same place."""
        return Follower(self._compiled, self._output)

    def mask(self) -> Mask:
        """What may come next. Raises DeadEnd when nothing may, or when it cannot be told within the limits."""
        if self._mask is None:
            self._mask = self._filled()
        if not self._mask.may_end and not self._mask.text.any():
            raise DeadEnd("the grammar allows no token here")
        return self._mask

    def accept(self, token: int) -> bool:
        """Go on by a token that the mask allowed; returns whether the output is complete, so that nothing follows.

        What is wrong with the token shows at the next `mask`.
        """
        self._output.append(token)
        self._mask = None
        if _guarded(lambda: self._matcher.consume_token(token)) and not _guarded(self._matcher.is_accepting):
            return False
        try:
            return not self.mask().text.any()
        except DeadEnd:
            return False

    def _filled(self) -> Mask:
        mask = self._computed()
        if mask is None and not self._is_alone and self._has_run_out():
            self._compiled.home.give_up(self._compiled)
            try:
                own = self._compiled.home.compiled_anew(self._compiled.grammar)
            except OctavoError as error:
                raise DeadEnd(str(error)) from error
            self._matcher, self._is_alone = own.start, True
            _guarded(lambda: self._matcher.consume_tokens(self._output))
            mask = self._computed()
        if mask is None:
            why = self._matcher.get_error().partition("\n")[0]
            raise DeadEnd(f"the grammar cannot be followed any further: {why}")
        return mask

    def _computed(self) -> Mask | None:
        if self._matcher.is_error():
            return None
        found = _guarded(self._matcher.compute_bitmask)
        if found is None or self._matcher.is_error():
            return None
        size = self._compiled.vocabulary.size
        bits = np.unpackbits(np.frombuffer(found, np.uint8), count=size + 1, bitorder="little").view(np.bool_)
        return Mask(bits[:size], bool(bits[self._compiled.vocabulary.end]))

    def _has_run_out(self) -> bool:
        return "too many states" in self._matcher.get_error()


def _guarded(work: Callable[[], _T]) -> _T | None:
    """None for whatever goes wrong in llguidance: the matcher is then in its error state, or will be found so.

    A panic in there is no `Exception`; it must not end the step.
    """
    try:
        return work()
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException:
        return None
