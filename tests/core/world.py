"""A scheduler with a shadow executor: what an engine does, reduced to single operations.

Every operation is recorded, so that a run can be replayed. Each one is followed by `Scheduler.check`; each plan is
held against the rules of the game (budget, order, nobody overtaken, no decode starved), and each finished sequence
against what it gives alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from octavo.core.admit import PREFIX_UNDER_WAY
from octavo.core.planning import WAITS_FOR_FLIGHT
from octavo.core.scheduler import Limits, Scheduler
from octavo.core.sequence import Request, State
from octavo.core.step import Event, Finished, Forked, Held, Preempted, Step, StepResult, Token
from tests.oracles.shadow import Shadow, alone, alone_beams, choose_beams

VOCAB = 6


def limits(**changes: object) -> Limits:
    """Small limits in which everything happens soon: 4 tokens per block, 4 seats, 16 tokens per step."""
    values: dict = {
        "num_blocks": 33,
        "block_tokens": 4,
        "max_num_seqs": 4,
        "max_num_batched_tokens": 16,
        "max_model_len": 64,
    }
    return Limits(**(values | changes))


@dataclass
class Story:
    """What a request's events have told so far."""

    request: Request
    outputs: dict[int, list[int]] = field(default_factory=dict)
    reasons: dict[int, str] = field(default_factory=dict)
    is_disturbed: bool = False


class World:
    def __init__(self, limits: Limits, *, vocab: int = VOCAB) -> None:
        self.limits, self.vocab = limits, vocab
        self.scheduler = Scheduler(limits)
        self.shadow = Shadow(limits.num_blocks, limits.block_tokens, limits.window_tokens, vocab)
        self.stories: dict[str, Story] = {}
        self.held: dict[str, dict[int, tuple]] = {}
        self.now_s = 0.0
        self.planned: list[Step] = []
        self.steps: list[Step] = []
        self.events: list[Event] = []
        self.calls: list[tuple] = []
        self.num_verified = 0

    @property
    def pool(self):
        return self.scheduler.cache.pool

    def sequence(self, request_id: str, index: int = 0):
        return next(s for s in self.scheduler.live(request_id) if s.index == index)

    def submit(self, request: Request) -> None:
        self._called("submit", request)
        self.scheduler.submit(request, self.now_s)
        story = self.stories[request.request_id] = Story(request)
        for sequence in self.scheduler.live(request.request_id):
            output = sequence.tokens[len(request.prompt) :]
            self.shadow.begin(sequence.seq_id, request, sequence.index, output)
            story.outputs[sequence.seq_id] = list(output)

    def plan(self) -> Step | None:
        """Plan if fewer than two steps are out."""
        if len(self.planned) > 1:
            return None
        self._called("plan")
        before = Before(self.scheduler)
        step = self.scheduler.plan(self.now_s)
        before.compare(self.scheduler, step)
        if step is not None:
            self.planned.append(step)
            self.steps.append(step)
            sequences = self.scheduler.sequences
            self.shadow.launch(step, self.pool.generations, lambda seq_id: sequences[seq_id].tokens)
        self.scheduler.check()
        return step

    def run(self, errors: frozenset[int] = frozenset()) -> tuple[Step, StepResult]:
        """Carry out the oldest step in flight; its commit is the caller's."""
        return self.planned.pop(0), self.shadow.run(errors)

    def land(self, errors: frozenset[int] = frozenset()) -> list[Event]:
        """Run and commit the oldest step in flight."""
        if not self.planned:
            return []
        return self.commit(*self.run(errors))

    def commit(self, step: Step, result: StepResult) -> list[Event]:
        self._called("commit", step, result)
        return self._take_in(self.scheduler.commit(step, result, self.now_s))

    def cancel(self, request_id: str) -> list[Event]:
        self._called("cancel", request_id)
        return self._take_in(self.scheduler.cancel(request_id, self.now_s))

    def finish(self, seq_id: int, reason: str = "stop") -> list[Event]:
        self._called("finish", seq_id, reason)
        self.stories[self.scheduler.sequences[seq_id].request.request_id].is_disturbed = True
        return self._take_in(self.scheduler.finish(seq_id, reason, self.now_s))

    def tell_costs(self, fixed_tokens: int) -> None:
        self._called("tell_costs", fixed_tokens)
        self.scheduler.tell_costs(fixed_tokens)
        self.scheduler.check()

    def pin(self, tokens: tuple[int, ...], namespace: bytes = b"") -> int:
        self._called("pin", tokens, namespace)
        kept = self.scheduler.pin(tokens, namespace)
        self.scheduler.check()
        return kept

    def unpin(self, tokens: tuple[int, ...], namespace: bytes = b"") -> int:
        self._called("unpin", tokens, namespace)
        kept = self.scheduler.unpin(tokens, namespace)
        self.scheduler.check()
        return kept

    def advance_ready(self) -> int:
        """Advance every beam search whose beams are all held. Returns how many."""
        count = 0
        for request_id in list(self.held):
            live = self.scheduler.live(request_id)
            if live and all(sequence.state is State.HELD for sequence in live):
                self.advance(request_id)
                count += 1
        return count

    def advance(self, request_id: str) -> list[Event]:
        story, held = self.stories[request_id], self.held.pop(request_id)
        tokens = {seq_id: self.scheduler.sequences[seq_id].tokens for seq_id in held}
        beams = choose_beams(story.request, tokens, held)
        if not beams:
            self._verify_beams(story, [tokens[seq_id] for seq_id in held])
        self._called("advance", request_id, tuple(beams))
        return self._take_in(self.scheduler.advance(request_id, beams, self.now_s))

    def turn(self, *, ahead: bool = True) -> list[Event]:
        """One turn of an engine's loop: keep one step ahead if `ahead`, commit the oldest."""
        first = len(self.events)
        self.plan()
        if ahead and len(self.planned) == 1:
            self.plan()
        self.land()
        self.advance_ready()
        return self.events[first:]

    def drain(self, max_turns: int = 20000, *, ahead: bool = True) -> int:
        """Run until everybody has ended and nothing is in flight. Returns the turns it took."""
        turns = 0
        while not self.scheduler.idle or self.planned:
            self.turn(ahead=ahead)
            turns += 1
            assert turns <= max_turns, "no end in sight"
        self.scheduler.check()
        assert not self.shadow.workers
        return turns

    def output(self, request_id: str, index: int = 0) -> list[int]:
        outputs = self.stories[request_id].outputs
        return outputs[sorted(outputs)[index]]

    def _called(self, *call: object) -> None:
        self.calls.append(call)

    def _take_in(self, events: list[Event]) -> list[Event]:
        self.shadow.take_in(events)
        self.events.extend(events)
        for event in events:
            self._follow(self.stories[event.request_id], event)
        for request_id in {event.request_id: None for event in events if isinstance(event, Finished)}:
            self._verify_full_beams(self.stories[request_id])
        self.shadow.poison(self.pool.scratch)
        self.scheduler.check()
        return events

    def _follow(self, story: Story, event: Event) -> None:
        assert event.seq_id not in story.reasons, "an event after the end"
        match event:
            case Forked():
                output = story.outputs[event.parent_id]
                story.outputs[event.seq_id] = output[: event.num_tokens - len(story.request.prompt)]
            case Token():
                assert event.position == len(story.request.prompt) + len(story.outputs[event.seq_id])
                story.outputs[event.seq_id].append(event.token)
            case Held():
                self.held.setdefault(event.request_id, {})[event.seq_id] = event.payload
            case Finished():
                story.reasons[event.seq_id] = event.reason
                self.held.get(event.request_id, {}).pop(event.seq_id, None)
                story.is_disturbed |= event.reason not in ("stop", "length", "beam")
                self._verify(story, event)
            case Preempted():
                pass

    def _verify(self, story: Story, event: Finished) -> None:
        """A finished sequence has the tokens and the end it has alone; a broken-off one the beginning of them."""
        output = story.outputs[event.seq_id]
        if story.request.params.beam_width is not None:
            return
        tokens, reason = alone(story.request, event.index, self.limits.max_model_len, self.vocab)
        assert output == tokens[: len(output)], f"{event.request_id} differs from what it gives alone"
        if event.reason == "length" or event.stop_token is not None:
            assert (output, event.reason) == (tokens, reason)
            self.num_verified += 1

    def _verify_full_beams(self, story: Story) -> None:
        """Beams that ran into the window end all at once."""
        longest = [seq_id for seq_id, reason in story.reasons.items() if reason == "length"]
        if longest and story.request.params.beam_width is not None:
            prompt = list(story.request.prompt)
            self._verify_beams(story, [prompt + story.outputs[seq_id] for seq_id in longest])

    def _verify_beams(self, story: Story, final: list[list[int]]) -> None:
        if story.is_disturbed:
            return
        wanted = alone_beams(story.request, self.limits.max_model_len, self.vocab)
        assert sorted(final) == sorted(wanted), "beams differ from what they give alone"
        self.num_verified += 1


class Before:
    """The scheduler just before a plan, to hold the plan against the rules."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.counts = {s.seq_id: (s.num_ready, s.epoch) for s in scheduler.sequences.values()}
        self.waits = {s.seq_id: s.wait_reasons.get(WAITS_FOR_FLIGHT, 0) for s in scheduler.sequences.values()}
        self.waiting = {s.seq_id for s in scheduler.sequences.values() if s.state is State.WAITING}
        self.passes = {s.seq_id: s.wait_reasons.get(PREFIX_UNDER_WAY, 0) for s in scheduler.roster.waiting}
        self.is_in_flight = bool(scheduler.flights)
        self.knows_costs = scheduler.knows_costs
        self.available = scheduler.cache.pool.num_available

    def compare(self, scheduler: Scheduler, step: Step | None) -> None:
        if step is None:
            assert self.is_in_flight or not any(
                s.state is not State.HELD for s in scheduler.sequences.values()
            ), "nothing is in flight, somebody could compute, and nothing was planned"
            return
        pieces = {piece.seq_id: piece for piece in step.slices}
        assert len(pieces) == len(step.slices), "two slices of one sequence"
        assert 0 < step.num_tokens <= scheduler.limits.max_num_batched_tokens
        for piece in step.slices:
            assert 1 <= piece.num_tokens <= scheduler.limits.chunk_tokens
        for seq_id, (ready, epoch) in self.counts.items():
            sequence = scheduler.sequences[seq_id]
            if ready == 1 and sequence.epoch == epoch and seq_id not in pieces:
                stalled = sequence.wait_reasons.get(WAITS_FOR_FLIGHT, 0) > self.waits[seq_id]
                better = any(
                    scheduler.sequences[other].request.priority < sequence.request.priority
                    for other in pieces
                )
                gives_way = self.knows_costs and better
                assert stalled or gives_way, "a decode was starved"
                assert self.is_in_flight or gives_way, "a decode waits for a step that is not in flight"
        begun = [s for s in scheduler.sequences.values() if s.seq_id in self.waiting and s.seq_id in pieces]
        for passed in scheduler.roster.waiting:
            if any(s.order > passed.order for s in begun):
                let_pass = passed.wait_reasons.get(PREFIX_UNDER_WAY, 0) > self.passes.get(passed.seq_id, 0)
                assert let_pass, "somebody was overtaken"
