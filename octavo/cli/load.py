"""Load for a server over HTTP, and how the server does under it.

Requests go out at their times whatever becomes of those before them (an open loop: a server that falls behind gets no
rest), or a fixed number at a time (a closed one). Prompts are token ids, answers have a forced length, everything is
streamed. Times are this process's; the first token counts from the moment the request is sent.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import time
import urllib.parse
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from octavo.errors import ConfigError

LONGEST_S = 600.0
"""An answer that takes longer has failed."""
TEXT = (
    "A server keeps the keys and values of every token it has read, so that the next one costs little. What it keeps "
    "is cut into blocks; a block that many prompts begin with is computed once, and the least used make room."
)
LOST, LATE = "connection_lost", "took_too_long"


@dataclass(frozen=True, slots=True)
class Ask:
    """One request. `at_s` is when it goes out, after the start; a closed loop does not look at it.

    key   where it is not the target's
    more  fields of its body
    """

    at_s: float
    prompt: Sequence[int]
    num_output_tokens: int
    key: str | None = None
    more: Mapping[str, object] = field(default_factory=dict)


@dataclass(slots=True)
class Outcome:
    """What became of a request. Times are seconds after the start.

    gaps_s  between arrivals of tokens
    code    of the error, where it ended with one
    """

    ask: Ask
    sent_s: float
    first_s: float | None = None
    last_s: float = 0.0
    num_tokens: int = 0
    gaps_s: list[float] = field(default_factory=list)
    code: str | None = None
    retry_after_s: float | None = None

    def token_came(self, now_s: float) -> None:
        """One, or several at once."""
        if self.first_s is None:
            self.first_s = now_s
        else:
            self.gaps_s.append(now_s - self.last_s)
        self.last_s = now_s

    @property
    def ttft_s(self) -> float:
        return math.inf if self.first_s is None else self.first_s - self.sent_s

    @property
    def tpot_s(self) -> float:
        """Mean time per output token after the first; 0 for an answer of one."""
        if self.first_s is None:
            return math.inf
        return (self.last_s - self.first_s) / (self.num_tokens - 1) if self.num_tokens > 1 else 0.0


@dataclass(frozen=True, slots=True)
class Slo:
    """What makes an answer a good one."""

    ttft_s: float = math.inf
    tpot_s: float = math.inf

    def is_met(self, one: Outcome) -> bool:
        return one.code is None and one.ttft_s <= self.ttft_s and one.tpot_s <= self.tpot_s


@dataclass(frozen=True, slots=True)
class Dialect:
    """How a server is asked, and what the events of its streams say.

    body  the fields of a request, `more` left out
    note  puts what an event says into the outcome; the last argument is when it came, in seconds after the start.
          True: it was the last. In every dialect `[DONE]` is the last, and a stream that closes before it is lost
    """

    path: str
    body: Callable[[Ask], dict[str, object]]
    note: Callable[[Outcome, Mapping[str, Any], float], bool]


def _openai_body(ask: Ask) -> dict[str, object]:
    return {
        "prompt": ask.prompt,
        "max_tokens": ask.num_output_tokens,
        "ignore_eos": True,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def _openai_note(outcome: Outcome, told: Mapping[str, Any], now_s: float) -> bool:
    """A token without text is seen only where `return_token_ids` has been asked for."""
    if "error" in told:
        outcome.code = str(told["error"].get("code") or "error")
        return False
    if told.get("usage"):
        outcome.num_tokens = told["usage"]["completion_tokens"]
    if told["choices"] and (told["choices"][0].get("text") or told["choices"][0].get("token_ids")):
        outcome.token_came(now_s)
    return False


OPENAI = Dialect("/v1/completions", _openai_body, _openai_note)


@dataclass(frozen=True, slots=True)
class Target:
    """Where requests go. Raises ConfigError for an address that is none."""

    host: str
    port: int
    model: str | None = None
    key: str | None = None
    dialect: Dialect = OPENAI

    @classmethod
    def of(cls, url: str, model: str | None = None, key: str | None = None) -> Target:
        parts = urllib.parse.urlsplit(url)
        if parts.scheme != "http" or parts.hostname is None:
            raise ConfigError(f"--url must be an address such as http://127.0.0.1:8000, got {url!r}")
        return cls(parts.hostname, parts.port or 80, model, key)

    def head(self, path: str, num_bytes: int, key: str | None) -> bytes:
        key = key or self.key
        lines = [f"POST {path} HTTP/1.1", f"host: {self.host}:{self.port}", "content-type: application/json"]
        lines += [f"authorization: Bearer {key}"] if key else []
        return "\r\n".join([*lines, f"content-length: {num_bytes}", "connection: close", "", ""]).encode()


def poisson(rng: random.Random, count: int, per_s: float) -> list[float]:
    """Times of `count` arrivals that do not know of each other, `per_s` of them in a second."""
    now, times = 0.0, []
    for _ in range(count):
        now += rng.expovariate(per_s)
        times.append(now)
    return times


def percentile(values: Sequence[float], part: float) -> float:
    """Interpolated between neighbours; NaN of nothing."""
    if not values:
        return math.nan
    ranked = sorted(values)
    place = part * (len(ranked) - 1)
    below = int(place)
    if ranked[below] == math.inf or below + 1 == len(ranked):
        return ranked[below]
    return ranked[below] + (place - below) * (ranked[below + 1] - ranked[below])


async def token_pool(target: Target) -> list[int]:
    """Token ids that the model knows: those of a text. Raises ConfigError when the server is not there."""
    body = json.dumps({"prompt": TEXT, "model": target.model} if target.model else {"prompt": TEXT}).encode()
    try:
        reader, writer = await asyncio.open_connection(target.host, target.port)
        writer.write(target.head("/tokenize", len(body), None) + body)
        status, _, answer = await _whole(reader)
        writer.close()
    except OSError as error:
        raise ConfigError(
            f"http://{target.host}:{target.port} does not answer: {error.strerror or error}"
        ) from None
    if status != 200:
        raise ConfigError(f"http://{target.host}:{target.port}/tokenize: {_error(answer, status)[1]}")
    return sorted(set(json.loads(answer)["tokens"]))


async def run_open(target: Target, asks: Sequence[Ask]) -> list[Outcome]:
    """Send each at its time; outcomes in the order of `asks`, when all have ended."""
    start_s = time.monotonic()

    async def one(ask: Ask) -> Outcome:
        await asyncio.sleep(max(ask.at_s - (time.monotonic() - start_s), 0.0))
        return await _answered(target, ask, start_s)

    return list(await asyncio.gather(*map(one, asks)))


async def run_closed(target: Target, asks: Sequence[Ask], concurrency: int) -> list[Outcome]:
    """So many at a time; the next goes out when one has ended."""
    start_s = time.monotonic()
    left = iter(enumerate(asks))
    outcomes: dict[int, Outcome] = {}

    async def worker() -> None:
        for place, ask in left:
            outcomes[place] = await _answered(target, ask, start_s)

    await asyncio.gather(*(worker() for _ in range(concurrency)))
    return [outcomes[place] for place in range(len(asks))]


async def _answered(target: Target, ask: Ask, start_s: float) -> Outcome:
    body = {**target.dialect.body(ask), **ask.more}
    if target.model is not None:
        body["model"] = target.model
    encoded = json.dumps(body).encode()
    outcome = Outcome(ask, time.monotonic() - start_s)
    writer = None
    try:
        async with asyncio.timeout(LONGEST_S):
            reader, writer = await asyncio.open_connection(target.host, target.port)
            writer.write(target.head(target.dialect.path, len(encoded), ask.key) + encoded)
            await _follow(reader, outcome, start_s, target.dialect)
    except TimeoutError:
        outcome.code = LATE
    except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        outcome.code = outcome.code or LOST
    finally:
        if writer is not None:
            writer.close()
    outcome.last_s = outcome.last_s or time.monotonic() - start_s
    return outcome


async def _follow(reader: asyncio.StreamReader, outcome: Outcome, start_s: float, dialect: Dialect) -> None:
    status, headers = await _head(reader)
    if status != 200:
        outcome.code, _ = _error(await _body(reader, headers), status)
        told = headers.get("retry-after")
        outcome.retry_after_s = float(told) if told else None
        return
    rest = b""
    while True:
        part = await _chunk(reader)
        if not part:
            outcome.code = outcome.code or LOST  # a clean close before the last event
            return
        rest += part
        *events, rest = rest.split(b"\n\n")
        now_s = time.monotonic() - start_s
        for event in events:
            if event == b"data: [DONE]":
                return
            if event.startswith(b"data: ") and dialect.note(outcome, json.loads(event[6:]), now_s):
                return


async def _whole(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    status, headers = await _head(reader)
    return status, headers, await _body(reader, headers)


async def _head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    pairs = (line.partition(":") for line in lines if line)
    return int(first.split()[1]), {name.lower(): value.strip() for name, _, value in pairs}


async def _body(reader: asyncio.StreamReader, headers: dict[str, str]) -> bytes:
    if "content-length" in headers:
        return await reader.readexactly(int(headers["content-length"]))
    parts = []
    while part := await _chunk(reader):
        parts.append(part)
    return b"".join(parts)


async def _chunk(reader: asyncio.StreamReader) -> bytes:
    """The next piece of a chunked body; nothing at its end."""
    size = int(await reader.readline() or b"0", 16)
    part = await reader.readexactly(size + 2)
    return part[:-2]


def _error(body: bytes, status: int) -> tuple[str, str]:
    try:
        error = json.loads(body)["error"]
        return str(error["code"]), str(error["message"])
    except (ValueError, KeyError, TypeError):
        return f"status_{status}", f"it answers {status}"


@dataclass(frozen=True, slots=True)
class Summary:
    """Of one run. Rates are per second from the first request sent to the last answer's end.

    percentiles_s  by figure (ttft, tpot, itl, e2e), then by percentile
    """

    num_requests: int
    num_good: int
    num_tokens: int
    wall_s: float
    codes: dict[str, int]
    percentiles_s: dict[str, dict[str, float]]

    @property
    def goodput_per_s(self) -> float:
        return self.num_good / self.wall_s

    @property
    def tokens_per_s(self) -> float:
        return self.num_tokens / self.wall_s


def summary(outcomes: Sequence[Outcome], slo: Slo) -> Summary:
    """Percentiles are those of answers that came; errors are counted by their codes."""
    good = [one for one in outcomes if one.code is None]
    figures = {
        "ttft": [one.ttft_s for one in good],
        "tpot": [one.tpot_s for one in good if one.num_tokens > 1],
        "itl": [gap_s for one in good for gap_s in one.gaps_s],
        "e2e": [one.last_s - one.sent_s for one in good],
    }
    start_s = min((one.sent_s for one in outcomes), default=0.0)
    return Summary(
        num_requests=len(outcomes),
        num_good=sum(map(slo.is_met, outcomes)),
        num_tokens=sum(one.num_tokens for one in good),
        wall_s=max((one.last_s for one in outcomes), default=0.0) - start_s or 1e-9,
        codes=dict(Counter(one.code for one in outcomes if one.code is not None)),
        percentiles_s={
            name: {f"p{part}": percentile(values, part / 100) for part in (50, 90, 99)}
            for name, values in figures.items()
        },
    )
