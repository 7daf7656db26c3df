"""What the scheduler's events mean for the requests under way, and what their callers are told."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from octavo.core.scheduler import Scheduler
from octavo.core.step import Event, Finished, Forked, Held, Preempted, StepResult, Token
from octavo.engine.outputs import RequestEnded, Update
from octavo.engine.tracking import Tracked
from octavo.errors import Bug
from octavo.exec.runner import Payload


class Teller:
    """Belongs to one engine and its thread.

    tracked   requests that have not been answered in full, by id
    owner     which request, and which choice of it, a sequence is
    started   the epoch with which the executor was told of a sequence
    appended  (sequence, token) that beams went on with, until the executor hears of them with the next step
    ended     sequences that have gone, until then
    """

    def __init__(self, scheduler: Scheduler, clock: Callable[[], float]) -> None:
        self.scheduler = scheduler
        self._clock = clock
        self.tracked: dict[str, Tracked] = {}
        self.owner: dict[int, tuple[str, int]] = {}
        self.started: dict[int, int] = {}
        self.appended: list[tuple[int, int]] = []
        self.ended: list[int] = []

    def note_prompts(self, result: StepResult) -> None:
        """Keep what was computed about prompts: log-probabilities, embeddings."""
        for output in result.outputs:
            payload = output.payload
            owner = self.owner.get(output.seq_id)
            if isinstance(payload, Payload) and owner is not None:
                tracked = self.tracked.get(owner[0])
                if tracked is not None:
                    tracked.prompt_logprobs.update(payload.prompt)
                    tracked.embedding = payload.embedding or tracked.embedding

    def told(self, events: Sequence[Event]) -> list[Update]:
        """Turn scheduler events into updates; stop texts and beams may cause further events."""
        updates: list[Update] = []
        queue = list(events)
        endings = {event.seq_id: event for event in queue if isinstance(event, Finished)}
        last = {event.seq_id: event.position for event in queue if isinstance(event, Token)}
        while queue:
            event = queue.pop(0)
            if isinstance(event, Token):
                last.setdefault(event.seq_id, event.position)
            tracked = self.tracked.get(event.request_id)
            if tracked is None:
                continue
            match event:
                case Token():
                    ending = endings.get(event.seq_id) if event.position == last[event.seq_id] else None
                    queue[:0] = self._on_token(event, tracked, ending, updates)
                case Forked():
                    self.owner[event.seq_id] = (event.request_id, event.index)
                    tracked.live_beams.add(event.seq_id)
                case Held():
                    queue[:0] = self._on_held(event, tracked)
                case Preempted():
                    tracked.metrics.preemptions += 1
                case Finished():
                    self._on_finished(event, tracked, updates)
        return updates

    def _on_token(
        self, event: Token, tracked: Tracked, ending: Finished | None, updates: list[Update]
    ) -> list[Event]:
        now_s = self._clock()
        if tracked.metrics.first_token_s is None:
            tracked.metrics.first_token_s = now_s
        tracked.num_drawn_tokens += 1
        if tracked.beams is not None:
            self.appended.append((event.seq_id, event.token))
            return []
        payload = event.payload
        choice, is_complete = None, False
        if isinstance(payload, Payload):
            place = event.index if len(payload.choices) > 1 else 0
            choice = payload.choices[place]
            is_complete = bool(payload.complete) and payload.complete[place]
        is_end = (
            is_complete and event.token in tracked.request.end_token_ids
        )  # before min_tokens the core sees none
        is_stop = is_end or (ending is not None and ending.stop_token is not None)
        delta, hit = tracked.push(event.index, event.token, choice, is_stop=is_stop, is_complete=is_complete)
        if tracked.is_streamed:
            updates.append(delta)
        if hit is None:
            return list(self.scheduler.finish(event.seq_id, "stop", now_s)) if is_complete else []
        tracked.choices[event.index].output.stop_reason = hit
        return list(self.scheduler.finish(event.seq_id, "stop", now_s))

    def _on_held(self, event: Held, tracked: Tracked) -> list[Event]:
        payload = event.payload
        if tracked.beams is None or not isinstance(payload, Payload):
            raise Bug(f"sequence {event.seq_id} is held without beam candidates")
        tracked.waiting_beams[event.seq_id] = payload.candidates
        if set(tracked.waiting_beams) != tracked.live_beams:
            return []
        beams = tracked.beams.step(tracked.waiting_beams)
        tracked.waiting_beams = {}
        events = self.scheduler.advance(event.request_id, beams, self._clock())
        forks: dict[int, list[int]] = {}
        for fork in events:
            if isinstance(fork, Forked):
                forks.setdefault(fork.parent_id, []).append(fork.seq_id)
        continued: set[int] = set()
        seq_ids = []
        for parent_id, _ in beams:
            seq_ids.append(forks[parent_id].pop(0) if parent_id in continued else parent_id)
            continued.add(parent_id)
        tracked.beams.named(seq_ids)
        return events

    def _on_finished(self, event: Finished, tracked: Tracked, updates: list[Update]) -> None:
        """A sequence has ended: close its choice and, with the last one, the request."""
        request_id = event.request_id
        self.owner.pop(event.seq_id, None)
        if self.started.pop(event.seq_id, None) is not None:
            self.ended.append(event.seq_id)
        if tracked.beams is not None:
            self._on_beam_finished(event, tracked)
        else:
            updates += tracked.closed(event.index, event.reason, event.stop_token, event.error)
        if tracked.has_ended:
            del self.tracked[request_id]
            updates.append(self.closed(tracked))

    def closed(self, tracked: Tracked) -> RequestEnded:
        tracked.metrics.finished_s = self._clock()
        return tracked.ended()

    def _on_beam_finished(self, event: Finished, tracked: Tracked) -> None:
        """The last live beam has gone: the choices are the best candidates, or what was cut short."""
        tracked.live_beams.discard(event.seq_id)
        tracked.waiting_beams.pop(event.seq_id, None)
        if tracked.live_beams:
            return
        cut_short = event.reason if event.reason in ("cancelled", "error") else None
        tracked.close_beams(cut_short, event.error)
