"""What a recording holds: one entry per call of a scheduler, one per answer of the server, and what they were part of.

Entries are MessagePack arrays. Tokens are there by the names that `disguise.py` gives them, four bytes each; texts,
grammars and stop texts are not there at all.
"""

from __future__ import annotations

from typing import Any

import msgspec

from octavo.core.limits import Limits

Piece = tuple[int, int, int, int, int, tuple[int, ...], int, tuple[tuple[int, int], ...], int]
"""A slice in full: its place in the step, seq_id, epoch, start, num_tokens, new_blocks, samples, replaced, and the
number of draft tokens."""


class Entry(msgspec.Struct, frozen=True, array_like=True, tag=True, omit_defaults=True):
    """Times are seconds on the machine-wide monotonic clock."""


class Opened(Entry, frozen=True, tag=0):
    """Comes first: which scheduler the calls went to, and whether they are there from the first one on.

    batch_invariant  whether tokens did not depend on company; decisions can be replayed all the same
    """

    version: str
    limits: Limits
    is_whole: bool
    batch_invariant: bool = True


class Asked(msgspec.Struct, frozen=True, array_like=True, omit_defaults=True):
    """What of sampling parameters decisions depend on."""

    n: int = 1
    best_of: int | None = None
    beam_width: int | None = None
    max_tokens: int | None = None
    min_tokens: int = 0
    embed: bool = False
    scores_prompt: bool = False


class Submitted(Entry, frozen=True, tag=1):
    """A request came.

    serial     counts submissions from 0
    seq_id     of its first sequence
    num_known  leading names that an earlier entry has given; the last of them is `known`
    names      of the tokens after those
    begun      index and names of the output of choices that go on
    namespace  a digest of it
    refused    code of the error, if it was
    """

    now_s: float
    serial: int
    seq_id: int
    request_id: str
    num_known: int
    known: int
    names: bytes
    asked: Asked
    priority: int = 0
    namespace: bytes = b""
    client: str = ""
    cost_weight: float = 1.0
    num_public_tokens: int = 0
    begun: tuple[tuple[int, bytes], ...] = ()
    refused: str | None = None


class Cancelled(Entry, frozen=True, tag=2):
    now_s: float
    request_id: str
    ended: tuple[int, ...] = ()


class Closed(Entry, frozen=True, tag=3):
    """A sequence was ended from outside, by a stop text say; `was_live` is False where it had ended before."""

    now_s: float
    seq_id: int
    reason: str
    was_live: bool


class Planned(Entry, frozen=True, tag=4):
    """A step, or none.

    number       of the step; -1 when nothing was planned
    decodes      sequences that compute one known token and draw one, in blocks they have, in order
    pieces       all other slices, which stand between those
    copies       source, target, tokens
    began        of each sequence that got memory: seq_id, tokens found in the cache, why not more
    head, why    first in the queue and its reason, where that is news; -1 when nobody waits
    num_waiting  sequences without memory
    num_free     blocks that somebody could have
    """

    now_s: float
    number: int
    decodes: tuple[int, ...] = ()
    pieces: tuple[Piece, ...] = ()
    copies: tuple[tuple[int, int, int], ...] = ()
    preempted: tuple[int, ...] = ()
    began: tuple[tuple[int, int, str], ...] = ()
    head: int | None = None
    why: str | None = None
    num_waiting: int = 0
    num_free: int = 0


class Committed(Entry, frozen=True, tag=5):
    """A step's result was taken in.

    launched_s, ended_s  when it ran; 0 where nobody said
    ended                seq_id and reason
    errors               seq_id and text of outputs that failed
    forks                parent and child
    held                 beams that wait
    lost                 seq_id and why, of sequences whose memory was taken
    """

    now_s: float
    number: int
    launched_s: float = 0.0
    ended_s: float = 0.0
    ended: tuple[tuple[int, str], ...] = ()
    errors: tuple[tuple[int, str], ...] = ()
    forks: tuple[tuple[int, int], ...] = ()
    held: tuple[int, ...] = ()
    lost: tuple[tuple[int, str], ...] = ()


class Advanced(Entry, frozen=True, tag=6):
    """Beams went on: parent, and the name of the token it got."""

    now_s: float
    request_id: str
    beams: tuple[tuple[int, int], ...]
    ended: tuple[tuple[int, str], ...] = ()
    forks: tuple[tuple[int, int], ...] = ()


class Drawn(Entry, frozen=True, tag=7):
    """The output of a sequence that ends with the next entry."""

    seq_id: int
    names: bytes


class Pinned(Entry, frozen=True, tag=8):
    names: bytes
    namespace: bytes
    takes_back: bool
    num_blocks: int


class CacheReset(Entry, frozen=True, tag=9):
    num_blocks: int


class Costed(Entry, frozen=True, tag=10):
    """It was told that a step costs without any tokens as much as so many more."""

    fixed_tokens: int


class Served(Entry, frozen=True, tag=20):
    """A request has been answered, or not.

    request_id   as the client knows it; `prompts` are the ids its prompts have on engines
    ended        code of what ended it; None for a good answer
    posted_s     its prompts were sent to an engine; accepted_s: all were in a queue there
    first_s, last_s  tokens came from the engine; sent_s: the end of the answer was handed to the system
    stalled_s    of the time before that, the client took nothing
    placed       engine, when, and why that one; more than one where an engine died
    Times are 0 for what did not happen.
    """

    request_id: str
    prompts: tuple[str, ...]
    route: str
    tenant: str
    ended: str | None
    received_s: float
    posted_s: float
    accepted_s: float
    first_s: float
    last_s: float
    sent_s: float
    stalled_s: float
    prompt_tokens: int
    output_tokens: int
    cached_tokens: int
    placed: tuple[tuple[int, float, str], ...] = ()


class Departed(Entry, frozen=True, tag=21):
    """An engine has gone, with so many requests aboard."""

    at_s: float
    engine: int
    epoch: int
    how: str
    num_aboard: int


class Saved(Entry, frozen=True, tag=30):
    """Begins a file.

    at_unix_s, at_s  the same moment as a date and on the clock of the entries
    why              somebody asked, or what happened
    settings         name to value; secrets are not there
    """

    version: str
    at_unix_s: float
    at_s: float
    why: str
    model: str
    settings: dict[str, str]


class Section(Entry, frozen=True, tag=31):
    """Begins the entries of one process: "front", or "engine" with its number and epoch."""

    kind: str
    number: int = 0
    epoch: int = 0


EngineEntry = (
    Opened
    | Submitted
    | Cancelled
    | Closed
    | Planned
    | Committed
    | Advanced
    | Drawn
    | Pinned
    | CacheReset
    | Costed
)

FrontEntry = Served | Departed
FileEntry = EngineEntry | FrontEntry | Saved | Section

_ENCODER = msgspec.msgpack.Encoder()
_ENGINE: msgspec.msgpack.Decoder[EngineEntry] = msgspec.msgpack.Decoder(EngineEntry)
_FILE: msgspec.msgpack.Decoder[FileEntry] = msgspec.msgpack.Decoder(FileEntry)


def encoded(entry: Any) -> bytes:
    return _ENCODER.encode(entry)


def engine_entry(record: bytes) -> EngineEntry:
    """Raises msgspec.MsgspecError."""
    return _ENGINE.decode(record)


def file_entry(record: bytes) -> FileEntry:
    """Raises msgspec.MsgspecError."""
    return _FILE.decode(record)
