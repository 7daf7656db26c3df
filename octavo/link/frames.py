"""What the front process and an engine process say to each other.

    front                                   engine
      |  Configure(config)          ->        |     first frame of the link
      |        <-   Hello, Loading..., Ready  |     or LoadFailed, after which the engine exits
      |  Submit                     ->        |     anew, or from where another engine broke off
      |        <-   Accepted                  |     or Refused: the request never ran
      |        <-   Delta..., ChoiceEnded...  |     choices interleave; each ends once
      |        <-   Ended                     |     last frame of a request, exactly once after Accepted
      |  Cancel                     ->        |     answered by Ended, unless that is under way already
      |        <-   Stats                     |     about once a second, busy or idle
      |  ResetCache                 ->        |
      |        <-   CacheWasReset             |     one for each, in order
      |  Drain                      ->        |     finish what runs, then close the link and exit with 0

The front tokenizes and renders chat templates; the engine detokenizes and matches stop texts, since they end
a sequence. Frames are MessagePack maps tagged by type; nothing in them is ever executed.
"""

from __future__ import annotations

from typing import Any

import msgspec

from octavo.config import EngineConfig
from octavo.core.sequence import SamplingParams

PROTOCOL = 6
"""Raised when a frame changes its meaning. Two processes that differ in it part at once."""


TOKEN_BUCKETS = tuple(2**power for power in range(16))
STEP_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Upper bounds by which engines count their forward passes."""


class Frame(
    msgspec.Struct, frozen=True, kw_only=True, tag=True, forbid_unknown_fields=True, omit_defaults=True
):
    """Base of all frames. Unknown fields are refused: both ends are of one version."""


class Configure(Frame, frozen=True):
    """Front to engine, first of all.

    num_engines   that share this machine: open settings take that part of its cores and free memory
    memory_limit  bytes, what an earlier engine in this place took for an open memory_limit; None where this is
                  the first
    trail_key     secret, for the names that tokens have in an engine's trail: the same for all engines of a server, so
                  that what they have in common shows
    """

    protocol: int
    version: str
    config: EngineConfig
    num_engines: int = 1
    memory_limit: int | None = None
    trail_key: bytes = b""


class Hello(Frame, frozen=True):
    """Engine to front, as soon as it has read Configure and before it loads anything."""

    protocol: int
    version: str
    pid: int


class Loading(Frame, frozen=True):
    """Progress of loading.

    phase   such as "weights" or "cache"
    done    of `total`, in bytes; a total of 0 means not known
    memory  (what, bytes, remark) rows of the plan, with the first of these frames
    """

    phase: str
    done: int = 0
    total: int = 0
    memory: tuple[tuple[str, int, str], ...] = ()


class LoadFailed(Frame, frozen=True):
    """The model cannot be served; `message` is meant to be read by the operator as it is."""

    code: str
    message: str


class Decision(Frame, frozen=True):
    """A setting that was "auto", what became of it, and why."""

    field: str
    value: str
    because: str


class Kernel(Frame, frozen=True):
    """The implementation chosen for an op, and a reason for each one passed over.

    is_batch_invariant  whether a row's bits depend on nothing but that row
    """

    op: str
    name: str
    passed_over: tuple[str, ...] = ()
    is_batch_invariant: bool = True


class Ready(Frame, frozen=True):
    """The engine serves.

    model            name to show
    model_path       folder the weights came from; None for random weights from a lone config.json
    tokenizer_path   folder the front loads its tokenizer from; None when there is none, and then the words of
                     the text are the token ids themselves
    fingerprint      of weights and layout, hexadecimal
    num_kv_blocks    blocks requests can use
    memory           (what, bytes, remark) rows of the plan, as printed
    load_s           seconds from Configure to here
    hidden_size      numbers in an embedding; 0 when the engine computes none
    memory_limit     bytes for weights, cache and workspace together
    batch_invariant  whether a request's bits depend on nothing but the request
    """

    model: str
    model_path: str | None
    tokenizer_path: str | None
    fingerprint: str
    dtype: str
    device: str
    vocab_size: int
    max_model_len: int
    num_parameters: int
    num_kv_blocks: int
    block_tokens: int
    memory: tuple[tuple[str, int, str], ...] = ()
    decisions: tuple[Decision, ...] = ()
    kernels: tuple[Kernel, ...] = ()
    load_s: float = 0.0
    hidden_size: int = 0
    memory_limit: int = 0
    batch_invariant: bool = True


class Progress(Frame, frozen=True, array_like=True, tag=False, omit_defaults=False):
    """How far the client is with one choice that another engine has begun.

    token_ids  of its output, in order
    num_chars  of its text
    has_ended  nothing of it is to be sent any more
    """

    index: int
    token_ids: tuple[int, ...]
    num_chars: int
    has_ended: bool


class Submit(Frame, frozen=True):
    """Run this prompt.

    request_id         chosen by the front, unique on this link
    priority           smaller goes first
    namespace          who may share cached blocks with it
    num_public_tokens  leading ones that everybody may share
    client             who takes turns with others, and `cost_weight` what a token counts in its service
    arrival_s          age is measured from here; seconds on the machine-wide monotonic clock (`time.monotonic`)
    seed               keys its draws; None lets the engine choose
    progress           choices begun before: each goes on after what its client has; those not named begin anew
    """

    request_id: str
    prompt_token_ids: tuple[int, ...]
    params: SamplingParams
    priority: int = 0
    namespace: bytes = b""
    num_public_tokens: int = 0
    client: str = ""
    cost_weight: float = 1.0
    arrival_s: float = 0.0
    seed: int | None = None
    progress: tuple[Progress, ...] = ()


class Cancel(Frame, frozen=True):
    """Nobody waits for this request any more. Unknown ids are no error: the request may just have ended."""

    request_id: str


class Drain(Frame, frozen=True):
    """No Submit follows. Finish what runs, then exit with 0."""


class ResetCache(Frame, frozen=True):
    """Forget the cached prefixes that nothing running uses."""


class CacheWasReset(Frame, frozen=True):
    """Engine to front: so many blocks were forgotten."""

    num_blocks: int


class ShowPages(Frame, frozen=True):
    """What is in the pool of blocks now?"""


class Pages(Frame, frozen=True):
    """Engine to front: what each block is, and whose, as in `octavo.core.pages`."""

    states: bytes
    owners: tuple[int, ...]
    clients: tuple[str, ...]
    num_blocks: int


class Accepted(Frame, frozen=True):
    """The request is in the scheduler's queue and will end with Ended."""

    request_id: str


class Refused(Frame, frozen=True):
    """The request never ran. `code` is that of an `OctavoError`.

    param          the request field at fault, if one is
    retry_after_s  when it may succeed, for code "overloaded"
    """

    request_id: str
    code: str
    message: str
    param: str | None = None
    retry_after_s: float | None = None


class TokenLogprob(Frame, frozen=True, array_like=True, tag=False, omit_defaults=False):
    """A token's log-probability (nats) and the likeliest tokens at its place, best first."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


class Delta(Frame, frozen=True):
    """What one returned choice gained.

    index      0 .. n-1. With best_of > n or beams only the winners are sent, whole, after all have ended
    text       may be empty while a character or a possible stop text is incomplete
    token_ids  every token, the one that ended it included
    logprobs   one per token, when the request asked
    """

    request_id: str
    index: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] | None = None


class ChoiceEnded(Frame, frozen=True):
    """One returned choice is complete; no Delta of it follows.

    finish_reason  "stop", "length", "cancelled" or "error"
    stop_reason    stop text or stop token id that ended it; None for the model's end tokens
    """

    request_id: str
    index: int
    finish_reason: str
    stop_reason: str | int | None = None
    error: str | None = None


class Usage(Frame, frozen=True):
    """Tokens of a request.

    completion_tokens    of the choices returned
    drawn_tokens         of all sequences, those of best_of and beams that lost included
    cached_prompt_tokens prompt tokens read from the prefix cache
    """

    prompt_tokens: int
    completion_tokens: int
    drawn_tokens: int = 0
    cached_prompt_tokens: int = 0


class Metrics(Frame, frozen=True):
    """When things happened, seconds on the engine's monotonic clock; None for what never did."""

    arrival_s: float
    first_scheduled_s: float | None = None
    first_token_s: float | None = None
    finished_s: float | None = None
    preemptions: int = 0
    cache_miss_reason: str | None = None
    seed: int = 0


class Ended(Frame, frozen=True):
    """The request is over.

    error            what went wrong when nothing was returned, else None
    prompt_logprobs  per prompt token, None for the first; only when asked for
    embedding        of length 1, little-endian float32; only when asked for
    """

    request_id: str
    usage: Usage
    metrics: Metrics
    error: str | None = None
    prompt_logprobs: tuple[TokenLogprob | None, ...] | None = None
    embedding: bytes | None = None


class Stats(Frame, frozen=True):
    """The engine's pulse.

    num_steps       forward passes so far; standing still while sequences run means a stall
    drained_per_s   requests ended per second while there were any, over the last half minute
    longest_step_s  of the forward passes so far
    step_age_s      since the last one ended, or the engine was ready
    step_counts     forward passes by duration, in the buckets of STEP_BUCKETS_S and above
    steps_s         all of them together
    token_counts    forward passes by tokens, in the buckets of TOKEN_BUCKETS and above
    step_tokens     all of them together
    fairness_gap    weighted tokens between the most and the least served client of those that wait
    cached_kv_blocks  blocks with cached prefixes that nobody runs on
    lookup_tokens ... computed_tokens  totals, as in `octavo.core.cache.Counters`
    """

    num_steps: int
    num_running: int
    num_waiting: int
    used_kv_blocks: int
    num_kv_blocks: int
    drained_per_s: float = 0.0
    longest_step_s: float = 0.0
    step_age_s: float = 0.0
    step_counts: tuple[int, ...] = ()
    steps_s: float = 0.0
    token_counts: tuple[int, ...] = ()
    step_tokens: int = 0
    block_tokens: int = 0
    cached_kv_blocks: int = 0
    pinned_kv_blocks: int = 0
    lookup_tokens: int = 0
    hit_tokens: int = 0
    evictions: int = 0
    preemptions: int = 0
    computed_tokens: int = 0
    fairness_gap: float = 0.0


ToEngine = Configure | Submit | Cancel | Drain | ResetCache | ShowPages
ToFront = (
    Hello
    | Loading
    | LoadFailed
    | Ready
    | Accepted
    | Refused
    | Delta
    | ChoiceEnded
    | Ended
    | Stats
    | CacheWasReset
    | Pages
)

TO_ENGINE: Any = ToEngine
TO_FRONT: Any = ToFront
