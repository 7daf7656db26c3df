"""A scheduler with a shadow executor: what an engine does, reduced to single operations.

Every operation is recorded, so that a run can be replayed. `drain` runs everything to its end and compares each
finished sequence with what it gives alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from octavo.core.scheduler import Limits, Scheduler
from octavo.core.sequence import Request, State
from octavo.core.step import Event, Finished, Forked, Held, Step, Token
from tests.oracles.shadow import Shadow, alone

VOCAB = 6


@dataclass
class Story:
    """What a request's events have told so far."""

    request: Request
    outputs: dict[int, list[int]] = field(default_factory=dict)
    reasons: dict[int, str] = field(default_factory=dict)
    index_of: dict[int, int] = field(default_factory=dict)


class World:
    def __init__(self, limits: Limits, *, check: bool = True, vocab: int = VOCAB) -> None:
        self.limits, self.vocab = limits, vocab
        self.scheduler = Scheduler(limits)
        self.shadow = Shadow(limits.num_blocks, limits.block_tokens, limits.window_tokens, vocab)
        self.stories: dict[str, Story] = {}
        self.held: dict[str, dict[int, tuple]] = {}
        self.planned: list[Step] = []
        self.calls: list[tuple] = []
        self.steps: list[Step] = []
        self.must_check = check
        self.num_operations = 0
        self.num_verified = 0

    def submit(self, request: Request) -> None:
        self._called("submit", request)
        self.scheduler.submit(request, 0.0)
        sequence = self.scheduler.live(request.request_id)[0]
        self.shadow.begin(sequence.seq_id, request)
        story = self.stories[request.request_id] = Story(request)
        story.outputs[sequence.seq_id] = []
        story.index_of[sequence.seq_id] = 0

    def plan(self) -> Step | None:
        """Plan if fewer than two steps are out."""
        if len(self.planned) > 1:
            return None
        self._called("plan")
        step = self.scheduler.plan(0.0)
        if step is not None:
            self.planned.append(step)
            self.steps.append(step)
            sequences = self.scheduler.sequences
            self.shadow.launch(step, self.scheduler.cache.pool.generations, lambda i: sequences[i].tokens)
        self._check()
        return step

    def land(self, errors: frozenset[int] = frozenset()) -> list[Event]:
        """Run and commit the oldest step in flight."""
        if not self.planned:
            return []
        step = self.planned.pop(0)
        result = self.shadow.run(errors)
        self._called("commit", step, result)
        return self._take_in(self.scheduler.commit(step, result, 0.0))

    def cancel(self, request_id: str) -> list[Event]:
        self._called("cancel", request_id)
        return self._take_in(self.scheduler.cancel(request_id, 0.0))

    def finish(self, seq_id: int, reason: str = "stop") -> list[Event]:
        self._called("finish", seq_id, reason)
        return self._take_in(self.scheduler.finish(seq_id, reason, 0.0))

    def pin(self, tokens: tuple[int, ...], namespace: bytes = b"") -> int:
        self._called("pin", tokens, namespace)
        kept = self.scheduler.pin(tokens, namespace)
        self._check()
        return kept

    def unpin(self, tokens: tuple[int, ...], namespace: bytes = b"") -> int:
        self._called("unpin", tokens, namespace)
        kept = self.scheduler.unpin(tokens, namespace)
        self._check()
        return kept

    def advance_ready(self) -> int:
        """Advance every beam search whose beams are all held. Returns how many."""
        count = 0
        for request_id in list(self.held):
            live = self.scheduler.live(request_id)
            if live and all(sequence.state is State.HELD for sequence in live):
                self._advance(request_id)
                count += 1
        return count

    def _advance(self, request_id: str) -> None:
        beams = choose_beams(self.stories[request_id].request, self.held.pop(request_id), self._tokens)
        self._called("advance", request_id, tuple(beams))
        self._take_in(self.scheduler.advance(request_id, beams, 0.0))

    def _tokens(self, seq_id: int) -> list[int]:
        return self.scheduler.sequences[seq_id].tokens

    def _called(self, *call: object) -> None:
        self.calls.append(call)
        self.num_operations += 1

    def _take_in(self, events: list[Event]) -> list[Event]:
        self.shadow.take_in(events)
        for event in events:
            story = self.stories[event.request_id]
            if isinstance(event, Forked):
                output = story.outputs[event.parent_id]
                story.outputs[event.seq_id] = output[: event.num_tokens - len(story.request.prompt)]
                story.index_of[event.seq_id] = event.index
            elif isinstance(event, Token):
                assert event.position == len(story.request.prompt) + len(story.outputs[event.seq_id])
                assert event.seq_id not in story.reasons, "a token after the end"
                story.outputs[event.seq_id].append(event.token)
            elif isinstance(event, Held):
                self.held.setdefault(event.request_id, {})[event.seq_id] = event.payload
            elif isinstance(event, Finished):
                assert event.seq_id not in story.reasons, "a sequence ended twice"
                story.reasons[event.seq_id] = event.reason
                self.held.get(event.request_id, {}).pop(event.seq_id, None)
                self._verify(story, event)
        self.shadow.poison(self.scheduler.cache.pool.scratch)
        self._check()
        return events

    def _check(self) -> None:
        if self.must_check:
            self.scheduler.check()

    def _verify(self, story: Story, event: Finished) -> None:
        """A finished sequence has the tokens and the end it has alone; a broken-off one the beginning of them."""
        if story.request.params.beam_width is not None:
            return
        tokens, reason = alone(story.request, event.index, self.limits.max_model_len, self.vocab)
        output = story.outputs[event.seq_id]
        assert output == tokens[: len(output)], f"{story.request.request_id} differs from what it gives alone"
        if (event.reason in ("stop", "length") and event.stop_token is not None) or event.reason == "length":
            assert (output, event.reason) == (tokens, reason)
            self.num_verified += 1

    def turn(self, *, ahead: bool = True) -> None:
        """One turn of an engine's loop: plan, then commit what is due."""
        self.plan()
        if len(self.planned) > (1 if ahead else 0) or not self._could_plan_more(ahead):
            self.land()
        self.advance_ready()

    def _could_plan_more(self, ahead: bool) -> bool:
        return ahead and len(self.planned) < 2 and self.plan() is not None

    def drain(self, max_turns: int = 20000, *, ahead: bool = True) -> None:
        """Run until everybody has ended and nothing is in flight."""
        turns = 0
        while not self.scheduler.idle or self.planned:
            progress = self.num_operations
            self.turn(ahead=ahead)
            turns += 1
            assert turns < max_turns, "no end in sight"
            assert self.num_operations > progress
        self._check()


def choose_beams(request: Request, held: dict[int, tuple], tokens_of) -> list[tuple[int, int]]:
    """A beam search of its own kind: best `beam_width` continuations by score; ends at max_tokens."""
    width = request.params.beam_width
    if any(len(tokens_of(s)) - len(request.prompt) + 1 >= request.params.max_tokens for s in held):
        return []
    pool = [(score, seq_id, token) for seq_id, found in held.items() for token, score in found]
    best = sorted(pool, key=lambda entry: (-entry[0], tuple(tokens_of(entry[1])), entry[2]))[:width]
    return [(seq_id, token) for _, seq_id, token in best]
