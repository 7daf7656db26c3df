"""What has been told of every request under way: enough to go on with it on another engine, to the letter."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from octavo.link import frames
from octavo.server.running import Running

FromEngine = frames.Accepted | frames.Refused | frames.Delta | frames.ChoiceEnded | frames.Ended


@dataclass(slots=True)
class Told:
    """What the client has of one choice."""

    token_ids: list[int] = field(default_factory=list)
    num_chars: int = 0
    has_ended: bool = False


class Entry:
    """One prompt on its way to its end, by whichever engine.

    num_matched    prompt tokens taken to be cached where it was sent
    has_output     something has come from the engine it is on now
    num_crashes    engines that died by their own doing with it aboard
    num_kills      engines that were killed from outside with it aboard
    held_since_s   when it began to wait for an engine; None while it is on one
    """

    __slots__ = (
        "_told",
        "has_output",
        "held_since_s",
        "num_crashes",
        "num_kills",
        "num_matched",
        "running",
        "submit",
    )

    def __init__(self, submit: frames.Submit, running: Running) -> None:
        self.submit = submit
        self.running = running
        self.num_matched = 0
        self.has_output = False
        self.num_crashes = 0
        self.num_kills = 0
        self.held_since_s: float | None = None
        self._told: dict[int, Told] = {}

    @property
    def request_id(self) -> str:
        return self.submit.request_id

    @property
    def num_prompt_tokens_left(self) -> int:
        """Prompt tokens that are to be computed where it was sent."""
        return len(self.submit.prompt_token_ids) - self.num_matched

    def order(self) -> frames.Submit:
        """What to send to the next engine: the request, and how far its client is."""
        if self.submit.params.is_told_at_once or not self._told:
            return self.submit
        progress = tuple(
            frames.Progress(index, tuple(told.token_ids), told.num_chars, told.has_ended)
            for index, told in sorted(self._told.items())
        )
        return msgspec.structs.replace(self.submit, progress=progress)

    def deliver(self, frame: FromEngine) -> None:
        """Note what a frame tells and hand it on.

        An answer given as a whole comes once more from the next engine; what the client has of it is dropped.
        """
        match frame:
            case frames.Delta():
                self.has_output = True
                if frame.index in self._told and self.submit.params.is_told_at_once:
                    return
                told = self._told.setdefault(frame.index, Told())
                told.token_ids += frame.token_ids
                told.num_chars += len(frame.text)
            case frames.ChoiceEnded():
                told = self._told.setdefault(frame.index, Told())
                if told.has_ended:
                    return
                told.has_ended = True
            case _:
                pass
        self.running.deliver(frame)
