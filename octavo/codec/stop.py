"""Stop texts: where the output ends, wherever the tokens happen to be cut."""

from __future__ import annotations

from collections.abc import Sequence


class StopMatcher:
    """Passes text on until the first stop text, which it swallows with everything after it.

    Of several stops the one whose occurrence *ends* first wins, because that is when it is known; of those
    ending at the same character, the longest, which begins first. So what is given out does not depend on
    how the text was cut. Text that may still become a stop is held back: never more characters than the
    longest stop less one.

    The stops are searched for together by an automaton (Aho and Corasick 1975): time in proportion to the
    text.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._next: list[dict[str, int]] = [{}]
        self._fail: list[int] = [0]
        self._depth: list[int] = [0]
        self._hit: list[str | None] = [None]
        for stop in stops:
            if not stop:
                raise ValueError("a stop text must not be empty")
            self._add(stop)
        self._link()
        self._state = 0
        self._held = ""
        self.hit: str | None = None

    def _add(self, stop: str) -> None:
        state = 0
        for char in stop:
            if char not in self._next[state]:
                self._next[state][char] = len(self._next)
                self._next.append({})
                self._fail.append(0)
                self._depth.append(self._depth[state] + 1)
                self._hit.append(None)
            state = self._next[state][char]
        self._hit[state] = stop

    def _link(self) -> None:
        """Breadth first; a state falls back to its longest proper suffix that begins some stop."""
        queue = list(self._next[0].values())
        for state in queue:
            for char, child in self._next[state].items():
                self._fail[child] = self._step(self._fail[state], char)
                if self._hit[child] is None:
                    self._hit[child] = self._hit[self._fail[child]]
                queue.append(child)

    def _step(self, state: int, char: str) -> int:
        while state and char not in self._next[state]:
            state = self._fail[state]
        return self._next[state].get(char, 0)

    def push(self, text: str, may_hit: bool = True) -> tuple[str, str | None]:
        """Text now certain to lie before any stop, and the stop that ended it, or None.

        may_hit  False lets stops that end within this text pass (the request wants more tokens first)
        After a hit nothing more comes out.
        """
        if self.hit is not None:
            return "", self.hit
        text = self._held + text
        for i in range(len(self._held), len(text)):
            self._state = self._step(self._state, text[i])
            hit = self._hit[self._state]
            if hit is not None and may_hit:
                self.hit, self._held = hit, ""
                return text[: i + 1 - len(hit)], hit
            while self._state and not self._next[self._state]:
                self._state = self._fail[self._state]
        sure = len(text) - self._depth[self._state]
        self._held = text[sure:]
        return text[:sure], None

    def flush(self) -> str:
        """What was held back, when no more text follows."""
        held, self._held = self._held, ""
        self._state = 0
        return held

    @property
    def num_held_chars(self) -> int:
        return len(self._held)
