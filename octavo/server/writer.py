"""What the routes that run a model do with frames: send them on as events, or gather them into one answer."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from functools import partial

from msgspec import UNSET, UnsetType
from starlette.requests import Request
from starlette.responses import Response

from octavo.api import sse
from octavo.api.common import Generation, Usage
from octavo.errors import OctavoError
from octavo.link import frames
from octavo.server import answers
from octavo.server.events import EventStream, watching
from octavo.server.front import Front
from octavo.server.gate import json_response
from octavo.server.reply import Listening
from octavo.server.running import Running, Update


class Writer(ABC):
    """Turns the frames of one request into objects of its route.

    headers    of the answer, besides its type
    listening  how texts are to be read, where they may be more than content
    """

    headers: Mapping[str, str] = {}
    listening: Listening | None = None

    def __init__(self, front: Front, running: Running) -> None:
        self.front = front
        self.running = running

    @abstractmethod
    def whole(self, got: Sequence[answers.Answer]) -> object:
        """The answer in one piece, as msgspec encodes it."""

    async def keep(self) -> None:
        """The answer is complete and about to be said to be so; what is to outlive it is put away here."""
        return


class StreamWriter(Writer):
    """One whose answer can also go out as events."""

    @property
    @abstractmethod
    def is_stream(self) -> bool:
        """Whether that is what was asked for."""

    @abstractmethod
    def opening(self) -> Iterator[bytes]:
        """Events that come first, before any token."""

    @abstractmethod
    def update(self, update: Update) -> Iterator[bytes]:
        """The events of one frame, none for what does not show. Raises OctavoError for what ends the answer early."""

    @abstractmethod
    def closing(self) -> Iterator[bytes]:
        """The last events of a good answer, the one that says it is complete among them."""

    def failure(self, error: OctavoError) -> bytes:
        """The last event of an answer that failed."""
        return sse.error_event(error)

    def keep_alive(self) -> bytes:
        """What breaks a long silence."""
        return sse.KEEP_ALIVE

    @property
    def waits_for_tokens(self) -> bool:
        """False when what was asked is answered by the opening alone."""
        return True

    async def events(self) -> AsyncGenerator[bytes]:
        """The answer as a stream: a terminal event at a good end, an error event at a bad one."""
        try:
            for event in self.opening():
                yield event
            unfinished = len(self.running.submits) if self.waits_for_tokens else 0
            while unfinished:
                update = await self.running.next(self.front.config.keep_alive_s)
                if update is None:
                    yield self.keep_alive()
                    continue
                for event in self.update(update):
                    yield event
                if isinstance(update, frames.Ended):
                    unfinished -= 1
            await self.keep()
            for event in self.closing():
                yield event
        except OctavoError as error:
            self.running.marks.failure = error.code
            yield self.failure(error)


class CompletionsWriter(StreamWriter):
    """What chat and completions have in common.

    prefix  of the answer's id
    """

    def __init__(self, front: Front, asked: Generation, running: Running, prefix: str) -> None:
        super().__init__(front, running)
        self.asked = asked
        self.id = f"{prefix}-{running.submits[0].request_id}"
        self.created = int(time.time())
        self.fingerprint = front.fingerprint
        self.usage = answers.RunningUsage(running)

    @property
    def is_stream(self) -> bool:
        return bool(self.asked.stream)

    @abstractmethod
    def delta(self, delta: frames.Delta) -> Iterator[bytes]:
        """The events of new text."""

    @abstractmethod
    def choice_end(self, ended: frames.ChoiceEnded) -> Iterator[bytes]:
        """The events that end a choice; the last gives its finish reason."""

    @abstractmethod
    def last(self, usage: Usage) -> bytes:
        """The event without choices that carries the usage."""

    def chunk_usage(self) -> Usage | UnsetType | None:
        """What an event with choices says about usage: the counts so far, null, or nothing at all."""
        if self.asked.continuous_usage:
            return self.usage.now()
        return None if self.asked.include_usage else UNSET

    def update(self, update: Update) -> Iterator[bytes]:
        match update:
            case frames.Delta():
                self.usage.add(update)
                if self._is_worth_an_event(update):
                    yield from self.delta(update)
            case frames.ChoiceEnded():
                answers.check_choice(update)
                yield from self.choice_end(update)
            case frames.Ended():
                answers.check_ended(update)
                self.usage.add(update)

    def closing(self) -> Iterator[bytes]:
        if self.asked.include_usage:
            yield self.last(self.usage.now())
        yield sse.DONE

    def _is_worth_an_event(self, delta: frames.Delta) -> bool:
        """A token whose characters are incomplete shows only in what counts or lists tokens."""
        counts = self.asked.return_token_ids or self.asked.continuous_usage
        return bool(delta.text or delta.logprobs or counts)


async def respond(request: Request, writer: Writer) -> Response:
    """Run what the writer's request asks for and answer as it wants: admitted first, then 200.

    Raises what refuses or ends the request before its first byte, and Gone when the client leaves.
    """
    front, running = writer.front, writer.running
    request.state.running = running
    async with watching(request.receive, running.abandon):
        if isinstance(writer, StreamWriter) and writer.is_stream:
            await front.admit(running)
            return EventStream(
                writer.events(), running, front.finish, partial(front.stalled, running), writer.headers
            )
        return json_response(await whole_answer(writer), headers=writer.headers)


async def whole_answer(writer: Writer) -> object:
    """Run what the writer's request asks for to its end. Raises what refuses or ends it, or Gone."""
    front, running = writer.front, writer.running
    await front.admit(running)
    try:
        whole = writer.whole(await answers.collect(running, writer.listening))
        await writer.keep()
        return whole
    except OctavoError as error:
        running.marks.failure = error.code
        raise
    finally:
        front.finish(running)
