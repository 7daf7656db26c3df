"""What one HTTP request has running on the engine: its prompts, and the frames that have come for them."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import msgspec

from octavo.api.faults import HttpError
from octavo.errors import OctavoError
from octavo.link import frames
from octavo.server.tenants import ANYBODY, Caller

Update = frames.Delta | frames.ChoiceEnded | frames.Ended


class Gone(Exception):
    """The client has closed its connection."""


@dataclass(slots=True)
class Marks:
    """What happened to a request and when, on this process's monotonic clock.

    received_s  it arrived; first_s and last_s are of its tokens
    posted_s    its prompts were sent to an engine; accepted_s: the last of them was taken in there
    stalled_s   the client took nothing of what was there to be sent
    placed      engine, when, and why that one, for each time a prompt was sent to one
    failure     code of what ended it, if that was an error
    """

    received_s: float
    first_s: float | None = None
    last_s: float = 0.0
    posted_s: float = 0.0
    accepted_s: float = 0.0
    stalled_s: float = 0.0
    placed: list[tuple[int, float, str]] = field(default_factory=list)
    output_tokens: int = 0
    cached_tokens: int = 0
    ended: list[frames.Ended] = field(default_factory=list)
    failure: str | None = None


class Running:
    """Frames of one or several engine requests, in order of arrival.

    submits        one per prompt, of the same parameters; their ids are unknown to the engine until they are posted
    grammar_param  the request field their grammar came in
    caller         whose it is
    deadline_s     when its answer must have ended, on the monotonic clock; None is never
    timer          rings then
    on_gap         is told the seconds between tokens
    on_tokens      is told how many have come
    on_resumed     is told the seconds from the end of an engine to the first token from another

    Deltas of one choice that wait here together become one, so a slow reader holds at most its own answer.
    """

    def __init__(
        self,
        submits: Sequence[frames.Submit],
        grammar_param: str | None = None,
        *,
        caller: Caller = ANYBODY,
        deadline_s: float | None = None,
        on_gap: Callable[[float], None] | None = None,
        on_tokens: Callable[[float], None] | None = None,
        on_resumed: Callable[[float], None] | None = None,
    ) -> None:
        self.submits = tuple(submits)
        self.grammar_param = grammar_param
        self.caller = caller
        self.deadline_s = deadline_s
        self.timer: asyncio.TimerHandle | None = None
        self.marks = Marks(time.monotonic() if caller.received_s is None else caller.received_s)
        self._on_gap = on_gap
        self._on_tokens = on_tokens
        self._on_resumed = on_resumed
        self._interrupted_s: float | None = None
        self._place = {submit.request_id: place for place, submit in enumerate(submits)}
        self._waiting: deque[Update] = deque()
        self._wake = asyncio.Event()
        self._unanswered = set(self._place)
        self._unfinished = set(self._place)
        self._error: OctavoError | None = None
        self._is_gone = False

    @property
    def num_prompt_tokens(self) -> int:
        """Of all prompts together."""
        return sum(len(submit.prompt_token_ids) for submit in self.submits)

    @property
    def unfinished(self) -> frozenset[str]:
        """Ids the engine may still be working on."""
        return frozenset(self._unfinished)

    def place(self, update: Update) -> int:
        """Which prompt the update belongs to, from 0."""
        return self._place[update.request_id]

    def deliver(self, frame: frames.Accepted | frames.Refused | Update) -> None:
        """A frame for one of the requests has arrived."""
        match frame:
            case frames.Accepted():
                self._unanswered.discard(frame.request_id)
                if not self._unanswered and not self.marks.accepted_s:
                    self.marks.accepted_s = time.monotonic()
            case frames.Refused():
                self._unanswered.discard(frame.request_id)
                self._unfinished.discard(frame.request_id)
                self.fail(
                    HttpError(frame.code, frame.message, param=frame.param, retry_after_s=frame.retry_after_s)
                )
            case frames.Delta():
                self._mark(frame)
                self._add(frame)
            case _:
                if isinstance(frame, frames.Ended):
                    self._unfinished.discard(frame.request_id)
                    self.marks.cached_tokens += frame.usage.cached_prompt_tokens
                    self.marks.ended.append(frame)
                self._waiting.append(frame)
        self._wake.set()

    def _mark(self, delta: frames.Delta) -> None:
        if not delta.token_ids:
            return
        marks, now_s = self.marks, time.monotonic()
        if marks.first_s is None:
            marks.first_s = now_s
        elif self._on_gap is not None:
            self._on_gap(now_s - marks.last_s)
        if self._interrupted_s is not None and self._on_resumed is not None:
            self._on_resumed(now_s - self._interrupted_s)
        self._interrupted_s = None
        marks.last_s = now_s
        marks.output_tokens += len(delta.token_ids)
        if self._on_tokens is not None:
            self._on_tokens(len(delta.token_ids))

    def interrupted(self) -> None:
        """The engine has gone in the middle of an answer; another goes on with it."""
        if self.marks.first_s is not None and self._interrupted_s is None:
            self._interrupted_s = time.monotonic()

    def fail(self, error: OctavoError) -> None:
        """Nothing more will come; whoever waits gets the error after what has already arrived."""
        if self._error is None:
            self._error = error
        self._wake.set()

    @property
    def is_gone(self) -> bool:
        """Whether its client has left."""
        return self._is_gone

    def abandon(self) -> None:
        """The client has gone; whoever waits gets `Gone`."""
        self._is_gone = True
        self._wake.set()

    async def admitted(self) -> None:
        """Wait until every prompt is in the engine's queue. Raises the engine's refusal, or Gone."""
        while self._unanswered:
            await self._woken(None)
        if self._error is not None:
            raise self._error

    async def next(self, timeout_s: float | None = None) -> Update | None:
        """The next update, or None when none came in time. Raises what `fail` was given, or Gone."""
        while not self._waiting:
            if not await self._woken(timeout_s):
                return None
        return self._waiting.popleft()

    async def _woken(self, timeout_s: float | None) -> bool:
        """Wait for anything to happen; False when it did not in time."""
        if self._is_gone:
            raise Gone
        if self._error is not None:
            raise self._error
        self._wake.clear()
        try:
            async with asyncio.timeout(timeout_s):
                await self._wake.wait()
        except TimeoutError:
            return False
        if self._is_gone:
            raise Gone
        return True

    def _add(self, delta: frames.Delta) -> None:
        last = self._waiting[-1] if self._waiting else None
        if isinstance(last, frames.Delta) and (last.request_id, last.index) == (
            delta.request_id,
            delta.index,
        ):
            parts = [part for part in (last.logprobs, delta.logprobs) if part is not None]
            logprobs = tuple(entry for part in parts for entry in part) if parts else None
            self._waiting[-1] = msgspec.structs.replace(
                last,
                text=last.text + delta.text,
                token_ids=last.token_ids + delta.token_ids,
                logprobs=logprobs,
            )
        else:
            self._waiting.append(delta)
