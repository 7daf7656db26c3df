"""What the routes share: the model's names, its tokenizer, the fleet, and the rules of admission."""

from __future__ import annotations

import asyncio
import difflib
import hashlib
import math
import secrets
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

import octavo
from octavo.api.common import MAX_WHOLE, Embeddings, ModelCard
from octavo.api.faults import HttpError
from octavo.codec.chat import compiled
from octavo.codec.numbers import NumberTokenizer
from octavo.codec.tokenizer import Tokenizer
from octavo.codec.tools import Dialect
from octavo.config import KNOBS, ServerConfig
from octavo.core.sequence import SamplingParams
from octavo.errors import Busy, LoadError, PromptTooLong, RequestError, UnknownModel
from octavo.link import frames
from octavo.obs.log import Log
from octavo.obs.metrics import Metrics
from octavo.obs.traces import Span, Traces
from octavo.server import keyring
from octavo.server.fleet import Fleet
from octavo.server.grammars import Grammars
from octavo.server.metering import BATCH_WEIGHT, Standings
from octavo.server.meters import FleetCollector, note_objective, note_run
from octavo.server.public_prefixes import PublicPrefixes
from octavo.server.recordings import Recordings
from octavo.server.running import Running
from octavo.server.tenants import Caller

if TYPE_CHECKING:
    from octavo.server.batch_runner import Batches
    from octavo.server.storage import Storage

NUM_CODEC_THREADS = 2
LONG_BODY_BYTES = 256 * 1024
"""Longer bodies have a thread of their own, so that short ones are not kept waiting."""
CODEC_S = 20.0
"""Reading, rendering and tokenizing one request takes at most this long."""
BATCH_PRIORITY = 2**40
"""Behind whatever anybody asks for."""
MAX_RECENT = 512
"""Requests of a tenant that have ended and are remembered, for whoever asks what became of them."""
MAX_RECENT_TENANTS = 64
MAX_DEADLINE_MS = 7 * 86_400_000
_T = TypeVar("_T")


class Front:
    """One server's state. Lives on one event loop."""

    def __init__(self, config: ServerConfig, fleet: Fleet, ready: frames.Ready, log: Log) -> None:
        self.config = config
        self.fleet = fleet
        self.log = log
        self.tokenizer = read_tokenizer(ready)
        self.dialect = Dialect(self.tokenizer, config.tool_call_format)
        self.grammars = Grammars(ready)
        self.chat_problem = _chat_problem(self.tokenizer)
        if self.chat_problem is not None:
            log.warn("no_chat", because=self.chat_problem)
        self.traces = Traces(config.otlp_endpoint, octavo.__version__) if config.otlp_endpoint else None
        self.standings = Standings()
        self.keyring, self._public_prefixes = self._read_keys()
        self.metrics = Metrics(compat=config.metrics_compat)
        self.started_s = time.time()
        self.is_draining = False
        self.running: set[Running] = set()
        self._recent: OrderedDict[str, deque[Span]] = OrderedDict()
        self._num_seeds = 0
        self.storage: Storage | None = None
        self.batches: Batches | None = None
        self.storage_problem = "this server keeps no files"
        self._codec = ThreadPoolExecutor(NUM_CODEC_THREADS, thread_name_prefix="octavo-codec")
        self._long_codec = ThreadPoolExecutor(1, thread_name_prefix="octavo-long-codec")
        self.card = ModelCard(
            id=config.served_model_name or ready.model,
            created=int(self.started_s),
            root=ready.model,
            max_model_len=ready.max_model_len,
            embeddings=Embeddings(dimensions=ready.hidden_size) if ready.hidden_size else None,
        )
        self.recordings = Recordings(
            config, log, model=self.card.id, trails=fleet.trails, settings=self.settings
        )
        fleet.on_crash = self.recordings.crashed
        self.hidden_size = ready.hidden_size
        FleetCollector(self, compat=config.metrics_compat)

    @property
    def fingerprint(self) -> str:
        """Changes when an answer could: weights, layout, tokenizer."""
        ready = self.fleet.ready
        parts = (ready.fingerprint if ready else "").encode() + self.tokenizer.digest
        return "fp_" + hashlib.sha256(parts).hexdigest()[:16]

    def check_model(self, name: str | None) -> None:
        """Raises UnknownModel for a name that is not served. No name means the one there is."""
        if name is None or name == self.card.id:
            return
        close = difflib.get_close_matches(name, [self.card.id], n=1)
        hint = "did you mean" if close else "served here is"
        raise UnknownModel(f"model {name!r} does not exist; {hint} {self.card.id!r}", param="model")

    async def off_loop(self, work: Callable[[], _T], num_bytes: int = 0) -> _T:
        """Run parsing, rendering or tokenizing in a thread, so that streams go on meanwhile.

        num_bytes  of the body; long ones wait for each other only
        Raises RequestError when it takes too long, and Busy when it did not even begin.
        """
        has_begun = False

        def begun() -> _T:
            nonlocal has_begun
            has_begun = True
            return work()

        pool = self._long_codec if num_bytes > LONG_BODY_BYTES else self._codec
        try:
            async with asyncio.timeout(CODEC_S):
                return await asyncio.get_running_loop().run_in_executor(pool, begun)
        except TimeoutError:
            if has_begun:
                raise RequestError(
                    f"reading this request takes longer than {CODEC_S:g} s; send less"
                ) from None
            raise Busy("many long requests are being read; try again later", retry_after_s=CODEC_S) from None

    def request(
        self,
        caller: Caller,
        prompts: Sequence[Sequence[int]],
        params: SamplingParams,
        *,
        param: str,
        grammar_param: str | None = None,
        priority: int | None = None,
        salt: str | None = None,
        deadline_ms: int | None = None,
    ) -> Running:
        """One engine request per prompt, not sent yet.

        param          the request field the prompts came in, for errors; `grammar_param` that of the grammar
        priority       the caller's wish; smaller goes first
        salt           keeps the prompts' cached blocks apart from the tenant's other ones
        deadline_ms    from the request's arrival to the end of the answer
        Raises RequestError, PromptTooLong for one that no window holds, and Busy or HttpError when there is no room
        for them.
        """
        for prompt in prompts:
            self._check_length(len(prompt), param)
        if self.is_draining:
            raise HttpError("shutting_down", "the server is shutting down", retry_after_s=5)
        self._check_room(len(prompts), param)
        terms = caller.tenant.terms
        arrival_s = time.monotonic()
        allowed_s = terms.deadline_s
        if deadline_ms is not None:
            if not 1 <= deadline_ms <= MAX_DEADLINE_MS:
                text = f"deadline_ms must be from 1 to {MAX_DEADLINE_MS}, got {deadline_ms}"
                raise RequestError(text, param="deadline_ms")
            allowed_s = min(deadline_ms / 1000, allowed_s or math.inf)
        return Running(
            [
                frames.Submit(
                    request_id=secrets.token_hex(16),
                    prompt_token_ids=tuple(prompt),
                    params=params,
                    priority=_priority(caller, priority),
                    namespace=caller.tenant.namespace_with(salt),
                    num_public_tokens=0 if salt is not None else self._public_prefixes.num_tokens(prompt),
                    client=caller.tenant.tenant_id + ("/batch" if caller.is_batch else ""),
                    cost_weight=(BATCH_WEIGHT if caller.is_batch else 1.0) / terms.share,
                    arrival_s=arrival_s,
                    seed=self._next_seed(caller, place) if params.seed is None else params.seed,
                )
                for place, prompt in enumerate(prompts)
            ],
            grammar_param,
            caller=caller,
            deadline_s=None if allowed_s is None else (caller.received_s or arrival_s) + allowed_s,
            on_gap=self.metrics.itl.observe if len(prompts) == params.num_choices == 1 else None,
            on_tokens=self.metrics.output_tokens_now.inc,
            on_resumed=self.metrics.resume_gap.observe,
        )

    async def admit(self, running: Running) -> None:
        """Try the grammar out, send the prompts and wait until the engine has taken them all; `finish` must follow.

        Raises what refuses them, or Gone; then nothing of the request is left.
        """
        standing = self.standings.of(running.caller.tenant)
        standing.check_quota()
        num_tokens = 0 if running.caller.is_batch else running.num_prompt_tokens
        standing.take_tokens(num_tokens)
        self.running.add(running)
        try:
            self._check_deadline(running)
            await self._check_grammar(running)
            self.fleet.submit(running)
            running.marks.posted_s = time.monotonic()
            if not running.caller.is_batch:
                self.metrics.overhead.observe(running.marks.posted_s - running.marks.received_s)
            await running.admitted()
        except BaseException:
            self._leave(running)
            note_objective(self.metrics, running)
            standing.charge(-num_tokens)
            raise

    async def _check_grammar(self, running: Running) -> None:
        """Raises what `Grammars.check` does."""
        grammar, begin_s = running.submits[0].params.grammar, time.monotonic()
        if grammar is None:
            return
        await self.grammars.check(grammar, running.grammar_param)
        self.metrics.grammar_compile.observe(time.monotonic() - begin_s)

    def remember(self, tenant_id: str, span: Span) -> None:
        """A request of the tenant has ended."""
        spans = self._recent.setdefault(tenant_id, deque(maxlen=MAX_RECENT))
        spans.append(span)
        self._recent.move_to_end(tenant_id)
        if len(self._recent) > MAX_RECENT_TENANTS:
            self._recent.popitem(last=False)

    def recent(self, tenant_id: str) -> Sequence[Span]:
        """The tenant's requests that have ended lately, oldest first."""
        return tuple(self._recent.get(tenant_id, ()))

    def stalled(self, running: Running, took_s: float) -> None:
        """Its client took so long to make room for what was to be sent."""
        running.marks.stalled_s += took_s
        self.metrics.stall.observe(took_s)

    def finish(self, running: Running) -> None:
        """The request is answered or given up: whatever of it still runs is cancelled."""
        self._leave(running)
        note_run(self.metrics, running)
        self.standings.note(running.caller, running.num_prompt_tokens, running.marks.output_tokens)

    def _check_deadline(self, running: Running) -> None:
        """Refuse what cannot be in time, and see to it that what turns out not to be ends then."""
        if running.deadline_s is None:
            return
        left_s = running.deadline_s - time.monotonic()
        takes_s = self.fleet.answer_in_s(running)
        if takes_s > left_s:
            raise HttpError(
                "deadline_unattainable",
                f"the answer would end in about {takes_s:.1f} s and must have ended in "
                f"{max(left_s, 0):.1f} s (deadline_ms)",
            )
        own_s = min(self.fleet.own_s(running), left_s)
        running.timer = asyncio.get_running_loop().call_later(
            left_s - own_s, self._last_moment, running, own_s
        )

    def _last_moment(self, running: Running, own_s: float) -> None:
        """Whoever begins later than now is late: let those go first that may still be in time."""
        if own_s > 0 and running.marks.first_s is None:
            running.fail(
                HttpError("deadline_unattainable", "it had not begun in time to end by its deadline")
            )
            self.fleet.cancel(running)
            return
        late = HttpError("deadline_exceeded", "the answer had not ended by its deadline (deadline_ms)")
        running.timer = asyncio.get_running_loop().call_later(own_s, running.fail, late)

    def _leave(self, running: Running) -> None:
        if running.timer is not None:
            running.timer.cancel()
        self.running.discard(running)
        self.fleet.cancel(running)

    def reload_keys(self) -> int:
        """Read the file of keys again; what runs goes on. Returns how many keys there are. Raises ConfigError."""
        self.keyring, self._public_prefixes = self._read_keys()
        return len(self.keyring.digests)

    def _read_keys(self) -> tuple[keyring.Keyring, PublicPrefixes]:
        read = keyring.read(self.config.keys, self.config.api_key)
        return read, PublicPrefixes(read.public_prefixes, self.tokenizer, self.chat_problem)

    def settings(self) -> dict[str, object]:
        """Setting to value, "set" or None for a secret."""
        values: dict[str, object] = {}
        for knob in KNOBS:
            section = self.config if knob.section == "server" else getattr(self.fleet.config, knob.section)
            value = getattr(section, knob.name)
            values[knob.name] = ("set" if value else None) if knob.secret else value
        return values

    def _next_seed(self, caller: Caller, place: int) -> int:
        """For a request that brings none. Chosen here, so that every engine that works on it draws the same.

        With an idempotency key it follows from that: sent again to another server, the request draws the same too.
        """
        what: tuple[object, ...] = ("key", caller.tenant.tenant_id, caller.idempotency_key, place)
        if caller.idempotency_key is None:
            self._num_seeds += 1
            what = (self._num_seeds,)
        text = f"octavo seed {self.fleet.config.model.seed} {' '.join(map(str, what))}".encode()
        return int.from_bytes(hashlib.sha256(text).digest()[:8], "little")

    def storage_or_refuse(self) -> Storage:
        """Raises HttpError where files and batches cannot be had."""
        if self.storage is None:
            raise HttpError("storage_unavailable", self.storage_problem)
        return self.storage

    def close(self) -> None:
        for pool in (self._codec, self._long_codec):
            pool.shutdown(wait=False, cancel_futures=True)
        self.grammars.close()
        if self.traces is not None:
            self.traces.close()

    def _check_length(self, num_tokens: int, param: str) -> None:
        """The engine knows better and checks again; what is absurd does not travel to it."""
        longest = self.card.max_model_len - 1
        if num_tokens > longest:
            raise PromptTooLong(
                f"the prompt has {num_tokens} tokens and the window is {longest + 1} tokens, of which at least one "
                f"is for the output; shorten the prompt to {longest}",
                param=param,
            )

    def _check_room(self, num_prompts: int, param: str) -> None:
        limit, used = self.config.max_queued_requests, self.fleet.num_running
        if num_prompts > limit:
            raise HttpError(
                "invalid_value",
                f"the request has {num_prompts} prompts, at most {limit} are queued here; send fewer at once",
                param=param,
            )
        if used + num_prompts > limit:
            per_s = self.fleet.stats.drained_per_s if self.fleet.stats else 0.0
            wait_s = (used + num_prompts - limit) / per_s if per_s > 0 else 10.0
            raise Busy(
                f"{used} requests wait or run, at most {limit} may; try again later", retry_after_s=wait_s
            )


def _priority(caller: Caller, wish: int | None) -> int:
    """No better than its tenant may have. Raises RequestError for a wish that no frame can carry."""
    if wish is not None and not -MAX_WHOLE <= wish <= MAX_WHOLE:
        raise RequestError(f"priority holds an integer beyond {MAX_WHOLE}", param="priority")
    if caller.is_batch:
        return BATCH_PRIORITY
    best = caller.tenant.terms.priority
    if best is None:
        return wish or 0
    return best if wish is None else max(wish, best)


def read_tokenizer(ready: frames.Ready) -> Tokenizer:
    """The tokenizer the engine uses too. Raises LoadError."""
    if ready.tokenizer_path is None:
        return NumberTokenizer(ready.vocab_size)
    return Tokenizer.from_path(ready.tokenizer_path)


def _chat_problem(tokenizer: Tokenizer) -> str | None:
    """Why conversations cannot be rendered, or None. Plain completions are served all the same."""
    if tokenizer.chat_template is None:
        return "this model has no chat template; send a prompt to /v1/completions"
    try:
        compiled(tokenizer.chat_template)
    except LoadError as error:
        return f"{error}; mend the template, or send a prompt to /v1/completions"
    return None
