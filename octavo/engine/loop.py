"""The loop: plan one step ahead, carry out, commit, and tell callers what happened.

While the executor computes step n in its own thread, this one commits step n-1, turns tokens into text and
plans step n+1. Planning needs counts only, so it does not wait for step n's tokens. On a device with a queue of its own
step n+1 is also launched then, and finds step n's tokens there.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

from octavo.codec.tokenizer import Tokenizer
from octavo.core.pages import Pages, pages
from octavo.core.scheduler import Scheduler
from octavo.core.sequence import Request, SamplingParams
from octavo.core.step import Step, StepResult
from octavo.core.turns import TurnTaker
from octavo.decode.beam import BeamSearch
from octavo.decode.grammar import Compiled, Grammars
from octavo.engine.checks import bad_words_of, check_request, check_types
from octavo.engine.costs import StepCosts
from octavo.engine.counts import Counts, StepTimes
from octavo.engine.outputs import RequestMetrics, Update
from octavo.engine.resume import take_up
from octavo.engine.telling import Teller
from octavo.engine.tracking import Tracked
from octavo.errors import Bug, RequestError
from octavo.exec.executor import Executor, Launched, LaunchingExecutor, Start
from octavo.link.frames import Progress


class Engine(TurnTaker[list[Update]]):
    """Requests in, updates out. Belongs to one thread; only the executor's work runs beside it.

    vocab_size  rows of the model's head; a tokenizer may know fewer
    clock       returns seconds that never go back
    on_ran      is told when a step began and ended, before it is committed
    seed        keys the seeds of requests that bring none
    launches_behind
                launch steps behind the one that runs; the executor must be a `LaunchingExecutor`
    """

    def __init__(
        self,
        scheduler: Scheduler,
        executor: Executor,
        tokenizer: Tokenizer,
        *,
        vocab_size: int,
        clock: Callable[[], float],
        seed: int = 0,
        on_ran: Callable[[float, float], None] | None = None,
        launches_behind: bool = False,
    ) -> None:
        super().__init__(scheduler.limits.max_num_batched_tokens, launches_behind=launches_behind)
        self.scheduler = scheduler
        self._vocab_size = vocab_size
        self.tokenizer = tokenizer
        self._end_ids = frozenset(one for one in tokenizer.end_ids if one < vocab_size)
        self._grammars = Grammars(tokenizer, vocab_size)
        self._executor = executor
        self._clock = clock
        self._on_ran = on_ran
        self._seed = seed
        self._num_added = 0
        self._num_steps = 0
        self._step_times = StepTimes(ended_s=clock())
        self._costs = StepCosts()
        self._teller = Teller(scheduler, clock)
        self._starts: list[Start] = []
        self._under_way: deque[tuple[Future[StepResult] | Future[Launched], float]] = deque()
        self._failure: Bug | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="octavo-step")

    @property
    def is_busy(self) -> bool:
        """Whether anything is waiting, running or in flight."""
        return self.awaited is not None or bool(self._teller.tracked)

    @property
    def num_requests(self) -> int:
        return len(self._teller.tracked)

    def counts(self) -> Counts:
        """The load right now. May be asked from another thread: each number is read by itself."""
        scheduler, pool = self.scheduler, self.scheduler.cache.pool
        usable = scheduler.limits.num_blocks - 1
        return Counts(
            num_steps=self._num_steps,
            num_running=len(scheduler.roster.resident),
            num_waiting=scheduler.roster.num_waiting,
            used_kv_blocks=usable - pool.num_available,
            num_kv_blocks=usable,
            block_tokens=scheduler.limits.block_tokens,
            cached_kv_blocks=len(pool.idle),
            pinned_kv_blocks=len(scheduler.cache.pinned),
            steps=self._step_times,
            totals=scheduler.counters,
            fairness_gap=scheduler.roster.turns.gap,
        )

    def grammar(self, params: SamplingParams) -> Compiled | None:
        """The compiled grammar of these parameters, for `add`. May be called from any thread, while steps go on.

        Raises RequestError for one that cannot be followed.
        """
        return None if params.grammar is None else self._grammars.compiled(params.grammar)

    def add(
        self,
        prompt_token_ids: Sequence[int],
        params: SamplingParams,
        *,
        request_id: str,
        grammar: Compiled | None = None,
        prompt_text: str | None = None,
        priority: int = 0,
        namespace: bytes = b"",
        num_public_tokens: int = 0,
        client: str = "",
        cost_weight: float = 1.0,
        arrival_s: float | None = None,
        seed: int | None = None,
        progress: Sequence[Progress] = (),
    ) -> list[Update]:
        """Accept a request. Raises RequestError, and leaves nothing behind, when it can never be served.

        grammar   that of `params`, where it has been compiled already; compiled here otherwise
        seed      keys its draws where `params` brings none; None has one chosen
        progress  choices another engine has begun; see `octavo.engine.resume`
        priority, namespace, num_public_tokens, client, cost_weight  as in `octavo.core.sequence.Request`
        Returns what the caller lacks of choices that turn out to have ended, usually nothing.
        """
        self._raise_failure()
        if request_id in self._teller.tracked:
            raise RequestError(
                f"request id {request_id!r} is already running; choose another", param="request_id"
            )
        check_types(params, priority, namespace)
        check_request(prompt_token_ids, params, self._vocab_size)
        if grammar is None:
            grammar = self.grammar(params)
        bad_words = bad_words_of(params, self.tokenizer, self._vocab_size)
        now_s = self._clock()
        request = Request(
            request_id=request_id,
            prompt=tuple(prompt_token_ids),
            params=params,
            priority=priority,
            namespace=namespace,
            num_public_tokens=num_public_tokens,
            client=client,
            cost_weight=cost_weight,
            end_token_ids=self._end_ids,
        )
        tracked = Tracked(
            request=request,
            prompt_text=prompt_text,
            tokenizer=self.tokenizer,
            metrics=RequestMetrics(arrival_s=now_s if arrival_s is None else arrival_s),
            grammar=grammar,
            bad_words=bad_words,
        )
        updates: list[Update] = []
        if progress:
            begun, updates = take_up(tracked, progress, self.scheduler.limits.max_model_len)
            if not begun:
                return [*updates, self._teller.closed(tracked)]
            tracked.request = replace(request, begun=begun)
        self.scheduler.submit(tracked.request, now_s)
        given = params.seed if params.seed is not None else seed
        tracked.metrics.seed = self._next_seed() if given is None else given
        if params.beam_width is not None:
            ends = frozenset(params.stop_token_ids) | (frozenset() if params.ignore_eos else self._end_ids)
            longest = self.scheduler.limits.max_model_len - len(request.prompt)
            tracked.beams = BeamSearch(
                beam_width=params.beam_width,
                length_penalty=params.length_penalty,
                early_stopping=params.early_stopping,
                max_new_tokens=min(params.max_tokens or longest, longest),
                end_ids=ends,
            )
        self._teller.tracked[request_id] = tracked
        return updates

    def _next_seed(self) -> int:
        self._num_added += 1
        text = f"octavo seed {self._seed} {self._num_added}".encode()
        return int.from_bytes(hashlib.sha256(text).digest()[:8], "little")

    def cancel(self, request_id: str) -> list[Update]:
        """End a request now. Unknown or ended ones are left alone: a cancel may cross its request's end."""
        if request_id not in self._teller.tracked:
            return []
        return self._teller.told(self.scheduler.cancel(request_id, self._clock()))

    def reset_prefix_cache(self) -> int:
        """Forget cached prefixes that nothing running uses, and not those that are pinned. Returns how many blocks."""
        return self.scheduler.reset_cache()

    def pages(self, max_shown: int) -> Pages:
        """The pool of blocks as it is now."""
        return pages(self.scheduler, max_shown)

    def step(self) -> list[Update]:
        """One turn, as `octavo.core.turns` orders its calls.

        Raises Bug when a step could not be carried out, and from then on.
        """
        self._raise_failure()
        updates: list[Update] = []
        costs = self._costs.news()
        if costs is not None:
            self.scheduler.tell_costs(costs)
        awaited = self.begin_turn()
        if awaited is not None:
            result, begun_s = self._carried_out(awaited)
            ended_s = self._clock()
            self._step_times.note(awaited.num_tokens, begun_s, ended_s)
            self._costs.note(awaited.num_tokens, ended_s - begun_s)
            if self._on_ran is not None:
                self._on_ran(begun_s, ended_s)
            updates = self.end_turn(result)
        if self.awaited is None and self._teller.tracked and not updates and not self.is_paused:
            self._failure = Bug(f"{len(self._teller.tracked)} requests wait, and the scheduler plans nothing")
            self._raise_failure()
        return updates

    def _carried_out(self, step: Step) -> tuple[StepResult, float]:
        """The step's result, and when it began: at its launch, or when the one before it ended.

        Whatever broke it ends the engine: what one sequence does comes back as its output.
        """
        future, launched_s = self._under_way.popleft()
        begun_s = max(launched_s, self._step_times.ended_s)
        try:
            found = future.result()
            if not isinstance(found, StepResult):  # behind the launch of the next step, in the same thread
                found = self._thread.submit(found.result).result()
            return found, begun_s
        except Exception as error:
            self._failure = Bug(f"step {step.number} could not be carried out: {error}")
            raise self._failure from error

    def _committed(self, step: Step, result: StepResult) -> list[Update]:
        events = self.scheduler.commit(step, result, self._clock())
        self._teller.note_prompts(result)
        return self._teller.told(events)

    def _is_wanted(self) -> bool:
        return bool(self._teller.tracked)

    def close(self) -> None:
        """Wait for the step in flight and stop the thread. Requests still tracked are lost."""
        self._thread.shutdown(wait=True)

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _planned(self) -> Step | None:
        now_s = self._clock()
        step = self.scheduler.plan(now_s)
        if step is None:
            return None
        for seq_id in step.preempted:
            self._teller.started.pop(seq_id, None)
        self._starts = []
        for piece in step.slices:
            if self._teller.started.get(piece.seq_id) != piece.epoch:
                self._teller.started[piece.seq_id] = piece.epoch
                self._starts.append(self._start(piece.seq_id, piece.epoch, now_s))
        return step

    def _start(self, seq_id: int, epoch: int, now_s: float) -> Start:
        sequence = self.scheduler.sequences[seq_id]
        request = sequence.request
        tracked = self._teller.tracked[request.request_id]
        self._teller.owner.setdefault(seq_id, (request.request_id, sequence.index))
        metrics = tracked.metrics
        metrics.wait_reasons |= sequence.wait_reasons
        if metrics.first_scheduled_s is None:
            metrics.first_scheduled_s = now_s
            metrics.cached_prompt_tokens = min(sequence.num_cached_tokens, len(request.prompt))
            if sequence.cache_report is not None:
                metrics.cache_miss_reason = sequence.cache_report.why
            tracked.live_beams.add(seq_id)
        return Start(
            seq_id=seq_id,
            epoch=epoch,
            tokens=tuple(sequence.tokens),
            num_prompt=len(request.prompt),
            params=request.params,
            index=sequence.index,
            seed=metrics.seed,
            end_token_ids=request.end_token_ids,
            grammar=tracked.grammar,
            bad_words=tracked.bad_words,
        )

    def _launch(self, step: Step) -> None:
        starts, self._starts = self._starts, []
        appended, self._teller.appended = self._teller.appended, []
        ended, self._teller.ended = self._teller.ended, []
        self._num_steps += 1
        launched_s = self._clock()
        future: Future[StepResult] | Future[Launched]
        if self._launches_behind:
            assert isinstance(self._executor, LaunchingExecutor), (
                "only such a one launches steps behind others"
            )
            future = self._thread.submit(self._executor.launch, step, starts, appended, ended)
        else:
            future = self._thread.submit(self._executor.run, step, starts, appended, ended)
        self._under_way.append((future, launched_s))
