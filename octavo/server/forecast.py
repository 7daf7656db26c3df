"""When an answer would end on an engine: who is ahead of it there, and how long answers have taken there lately.

By Little's law an engine that has S places and keeps each answer B seconds ends S / B of them in a second. What waits
ahead of a new request leaves at that rate; then its own answer takes as long as others of its length have.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from octavo.link import frames
from octavo.server.journal import Entry

MEMORY = 0.1
"""Weight of the latest answer in a mean."""
MARGIN = 1.25
"""Answers take longer than the mean as often as not; what is promised has so much room."""


class Mean:
    """Of what was seen lately; 0 before anything was."""

    def __init__(self) -> None:
        self.value = 0.0
        self._is_empty = True

    def see(self, value: float) -> None:
        self.value += (value - self.value) * (1.0 if self._is_empty else MEMORY)
        self._is_empty = False


class Forecast:
    """What one engine has aboard, counted, and what its answers have taken.

    max_places  sequences that it runs side by side at most
    """

    def __init__(self, max_places: int) -> None:
        self.num_pending_tokens = 0
        self._max_places = max_places
        self._waiting: Counter[tuple[int, str]] = Counter()
        self._begun: Counter[int] = Counter()
        self._first_s = Mean()
        self._token_s = Mean()
        self._num_tokens = Mean()
        self._whole_s = Mean()

    def enter(self, entry: Entry) -> None:
        """It has been sent to the engine."""
        self._waiting[_line(entry)] += 1
        self.num_pending_tokens += entry.num_prompt_tokens_left

    def begun(self, entry: Entry) -> None:
        """Its first output has come."""
        self._out_of_line(entry)
        self._begun[entry.submit.priority] += 1

    def leave(self, entry: Entry) -> None:
        """It is aboard no longer."""
        if entry.has_output:
            _take(self._begun, entry.submit.priority)
        else:
            self._out_of_line(entry)

    def clear(self) -> None:
        """The engine has gone, with all that was aboard. What it has shown stays: the next one is the same."""
        self._waiting.clear()
        self._begun.clear()
        self.num_pending_tokens = 0

    def note(self, ended: frames.Ended) -> None:
        """An answer has come to its end."""
        told, num_tokens = ended.metrics, ended.usage.completion_tokens
        if told.first_scheduled_s is None or told.first_token_s is None or told.finished_s is None:
            return
        self._first_s.see(told.first_token_s - told.first_scheduled_s)
        self._whole_s.see(told.finished_s - told.first_scheduled_s)
        self._num_tokens.see(num_tokens)
        if num_tokens > 1:
            self._token_s.see((told.finished_s - told.first_token_s) / (num_tokens - 1))

    def own_s(self, submit: frames.Submit) -> float:
        """From the moment it begins to the end of its answer, with room; 0 where nothing is known."""
        params = submit.params
        num_tokens = self._num_tokens.value
        if params.max_tokens is not None and (params.ignore_eos or params.max_tokens < num_tokens):
            num_tokens = params.max_tokens
        if params.embed:
            num_tokens = 1
        return MARGIN * (self._first_s.value + max(num_tokens - 1, 0) * self._token_s.value)

    def wait_s(self, submit: frames.Submit, stats: frames.Stats | None) -> float:
        """Until it begins; 0 where nothing is known."""
        places = self._max_places
        if stats is not None and stats.num_waiting and stats.num_running:
            places = min(places, stats.num_running)
        ahead = self._ahead(submit.priority, submit.client) - places + 1
        return max(ahead, 0) * self._whole_s.value / places

    def _ahead(self, priority: int, client: str) -> int:
        """Those that end before a new one of that client begins: of each other client no more wait than of its own,
        since clients take turns.
        """
        own = self._waiting.get((priority, client), 0)
        ahead = sum(count for other, count in self._begun.items() if other <= priority)
        for (other, name), count in self._waiting.items():
            if other < priority or (other == priority and name == client):
                ahead += count
            elif other == priority:
                ahead += min(count, own + 1)
        return ahead

    def _out_of_line(self, entry: Entry) -> None:
        _take(self._waiting, _line(entry))
        self.num_pending_tokens -= entry.num_prompt_tokens_left


def _line(entry: Entry) -> tuple[int, str]:
    return entry.submit.priority, entry.submit.client


def _take(counter: Counter[Any], key: Any) -> None:
    counter[key] -= 1
    if counter[key] <= 0:
        del counter[key]
