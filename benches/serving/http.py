"""What does serving over HTTP cost, and how does it hold under load: overload, neighbours, batches, S1?

The server is a process of its own, the load comes from this one; where there are two cores, the engine has one of them
and the front process shares the other with the load. `front` runs against an engine that only counts, the others
against a bundled model.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import json
import os
import random
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import httpx

from benches import harness
from benches.harness import Bench, Figures, GateFailed, Settings
from benches.record import slug
from benches.serving import trace
from octavo.cli import load
from octavo.cli.load import Ask, Outcome, Slo, Target
from octavo.errors import OctavoError
from tests.server.process import FAKE, Served, serving
from tests.server.test_keyring import tenant_row

REAL = (sys.executable, "-m", "octavo", "serve")
MAX_NUM_SEQS = 32
WINDOW_S = 12.0
"""How long requests are sent for, in each subject of each round."""
PROMPT, OUTPUT = (64, 256), (32, 128)
CAPACITY_REQUESTS = 240
DEADLINE_FACTOR = 4.0
"""Requests of the overload bench must have ended within so many times what one takes at capacity."""
VICTIM_SHARE, FLOOD, FLOOD_PROMPT = 0.2, 10.0, 1200
BATCH_LINES = 4000
RATES = (0.5, 0.8, 1.0, 1.2)
LONGEST_PROMPT, LONGEST_OUTPUT = 1500, 256
STREAMS, STREAM_TOKENS, LONE_REQUESTS = 32, 3000, 200
VICTIM, FLOODER = "key-of-the-victim", "key-of-the-flooder"


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(prog="python -m benches.serving.http", description=__doc__)
    parser.add_argument(
        "--questions", default=",".join(QUESTIONS), help="comma separated (default %(default)s)"
    )
    harness.arguments(parser)
    args = parser.parse_args(words)
    names = args.questions.split(",")
    if set(names) - set(QUESTIONS):
        parser.error(f"questions are {', '.join(QUESTIONS)}")
    settings = harness.settings(args, "benches.serving.http", words)
    try:
        return harness.ask([QUESTIONS[name](settings) for name in names], settings)
    except OctavoError as error:
        print(f"{error} [{error.code}]", file=sys.stderr)
        return 2


# The front process


def front(_: Settings) -> Bench:
    return Bench(
        question="How many chunks does a core of the front process send, and what does it add to the first token?",
        slug="http-front",
        figure="chunks_per_core_s",
        unit="chunks/s",
        better="higher",
        shape={"streams": STREAMS, "tokens": STREAM_TOKENS, "lone_requests": LONE_REQUESTS},
        gate=_gate_front,
        subjects={"streams": _streams},
        notes=[
            "the engine makes a token whenever it is asked to, each in a frame of its own",
            "added_ttft_s is the median first token of lone requests, the engine's own time and the load's included",
        ],
    )


@contextlib.contextmanager
def _counting() -> Iterator[tuple[Served, Target]]:
    with serving(["fake"], FAKE) as served:
        yield served, Target.of(served.url)


def _gate_front() -> str:
    with _counting() as (_, target):
        (one,) = asyncio.run(load.run_open(target, [Ask(0.0, [5, 6, 7], 100)]))
        if one.code is not None or one.num_tokens != 3:
            raise GateFailed(f"three tokens were asked for, {one.num_tokens} came ({one.code})")
    return "a stream holds as many tokens as were drawn"


def _streams(repeat: int) -> Figures:
    del repeat
    with _counting() as (served, target):
        before_s = _cpu_s(served.process.pid)
        asks = [Ask(0.0, [5] * STREAM_TOKENS, STREAM_TOKENS) for _ in range(STREAMS)]
        outcomes = asyncio.run(load.run_open(target, asks))
        used_s = _cpu_s(served.process.pid) - before_s
        lone = asyncio.run(load.run_closed(target, [Ask(0.0, [5, 6], 2)] * LONE_REQUESTS, 1))
    _refuse_failures([*outcomes, *lone])
    chunks = sum(len(one.gaps_s) + 1 for one in outcomes)
    wall_s = max(one.last_s for one in outcomes)
    ttfts = [one.ttft_s for one in lone]
    return {
        "chunks_per_core_s": chunks / used_s,
        "chunks_per_s": chunks / wall_s,
        "tokens_per_core_s": sum(one.num_tokens for one in outcomes) / used_s,
        "added_ttft_s": load.percentile(ttfts, 0.5),
        "added_ttft_p99_s": load.percentile(ttfts, 0.99),
    }


def _cpu_s(pid: int) -> float:
    """Processor seconds of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# Under load, with a model


@contextlib.contextmanager
def _model(*more: str, keys: str = "") -> Iterator[tuple[Served, Target, list[int]]]:
    """A server with the bundled model on one core, the target, and token ids to make prompts of."""
    with contextlib.ExitStack() as opened:
        arguments = [f"--max-num-seqs={MAX_NUM_SEQS}", "--num-threads=1", "--memory-limit=2GiB", *more]
        if keys:
            folder = Path(opened.enter_context(tempfile.TemporaryDirectory()))
            (folder / "keys.toml").write_text(keys)
            arguments += ["--keys", str(folder / "keys.toml")]
        served = opened.enter_context(serving(arguments, REAL))
        target = Target.of(served.url, None, VICTIM if keys else None)
        pool = asyncio.run(load.token_pool(target))
        yield served, target, pool


def _asks(
    rng: random.Random,
    pool: Sequence[int],
    times: Sequence[float],
    *,
    prompt: tuple[int, int] = PROMPT,
    output: tuple[int, int] = OUTPUT,
    key: str | None = None,
    more: Mapping[str, object] | None = None,
) -> list[Ask]:
    return [
        Ask(at_s, rng.choices(pool, k=rng.randint(*prompt)), rng.randint(*output), key, more or {})
        for at_s in times
    ]


def _gate_model() -> str:
    with _model() as (served, target, pool):
        asks = _asks(random.Random(1), pool, [0.0] * 4)
        outcomes = asyncio.run(load.run_open(target, asks))
        _refuse_failures(outcomes)
        if [one.num_tokens for one in outcomes] != [ask.num_output_tokens for ask in asks]:
            raise GateFailed("answers have not the length that was asked for")
        body = {"prompt": asks[0].prompt, "max_tokens": 8, "temperature": 0}
        texts = {served.post("/v1/completions", body).json()["choices"][0]["text"] for _ in range(3)}
        if len(texts) != 1:
            raise GateFailed(f"a greedy prompt has {len(texts)} answers")
    return "answers have the length asked for, and a greedy one is the same each time"


def _refuse_failures(outcomes: Sequence[Outcome]) -> None:
    codes = sorted({one.code for one in outcomes if one.code is not None})
    if codes:
        raise GateFailed(f"requests ended with {', '.join(codes)}")


@functools.cache
def _capacity() -> tuple[float, float]:
    """Requests per second that a server with as many under way as it has seats ends, and how long one takes then.

    Measured once for all subjects of a run, so that all are offered the same.
    """
    with _model() as (_, target, pool):
        rng = random.Random(7)
        asyncio.run(load.run_closed(target, _asks(rng, pool, [0.0] * 2 * MAX_NUM_SEQS), MAX_NUM_SEQS))
        asks = _asks(rng, pool, [0.0] * CAPACITY_REQUESTS)
        outcomes = asyncio.run(load.run_closed(target, asks, MAX_NUM_SEQS))
    _refuse_failures(outcomes)
    found = load.summary(outcomes, Slo())
    return found.goodput_per_s, found.percentiles_s["e2e"]["p50"]


def _shape(**more: object) -> dict[str, object]:
    return {
        "model": "quire",
        "prompt_tokens": PROMPT,
        "output_tokens": OUTPUT,
        "seats": MAX_NUM_SEQS,
        "window_s": WINDOW_S,
        **more,
    }


def overload(_: Settings) -> Bench:
    return Bench(
        question="How much of its best goodput does a server keep under ten times the load it can carry?",
        slug=slug("http overload quire"),
        figure="goodput_per_s",
        unit="good answers/s",
        better="higher",
        shape=_shape(deadline_factor=DEADLINE_FACTOR),
        gate=_gate_model,
        subjects={
            "at capacity": functools.partial(_overloaded, 1.0),
            "ten times": functools.partial(_overloaded, 10.0),
        },
        notes=[
            "every request has a deadline; what cannot be in time is refused at once, and is not sent again",
            "good is an answer that has ended by its deadline; offered is what was sent per second",
        ],
    )


def _overloaded(factor: float, repeat: int) -> Figures:
    per_s, takes_s = _capacity()
    deadline_s = DEADLINE_FACTOR * takes_s
    with _model("--max-queued-requests=4096") as (_, target, pool):
        rng = random.Random(100 + repeat)
        times = load.poisson(rng, int(WINDOW_S * per_s * factor), per_s * factor)
        asks = _asks(rng, pool, times, more={"deadline_ms": int(1000 * deadline_s)})
        warm = _asks(rng, pool, [0.0] * (2 * MAX_NUM_SEQS))
        asyncio.run(load.run_closed(target, warm, MAX_NUM_SEQS))
        outcomes = asyncio.run(load.run_open(target, asks))
    good = [one for one in outcomes if one.code is None]
    refused = [one.last_s - one.sent_s for one in outcomes if one.code is not None]
    unexpected = {one.code for one in outcomes} - {
        None,
        "deadline_unattainable",
        "deadline_exceeded",
        "overloaded",
    }
    if unexpected:
        raise GateFailed(f"requests ended with {unexpected}")
    return {
        "goodput_per_s": len(good) / WINDOW_S,
        "offered_per_s": len(asks) / WINDOW_S,
        "deadline_s": deadline_s,
        "good_share": len(good) / len(asks),
        "given_up_share": sum(one.code == "deadline_exceeded" for one in outcomes) / len(asks),
        "refused_after_p50_s": load.percentile(refused, 0.5) if refused else 0.0,
        "ttft_p99_s": load.percentile([one.ttft_s for one in good], 0.99),
    }


def neighbours(_: Settings) -> Bench:
    return Bench(
        question="How much later is a tenant's first token when another floods the server with ten times its capacity?",
        slug=slug("http neighbours quire"),
        figure="ttft_p99_s",
        unit="s",
        better="lower",
        shape=_shape(victim_share=VICTIM_SHARE, flood=FLOOD, flood_prompt_tokens=FLOOD_PROMPT),
        gate=_gate_model,
        subjects={
            "alone": functools.partial(_flooded, 0.0, ""),
            "refused flood": functools.partial(_flooded, FLOOD, "suspended = true"),
            "bounded flood": functools.partial(_flooded, FLOOD, "max_concurrency = 2"),
            "unbounded flood": functools.partial(_flooded, FLOOD, ""),
        },
        notes=[
            "the flooder sends prompts that nobody has sent before; bounded, it may have 2 requests at once; refused, "
            "none of them reaches an engine, which shows what sending and refusing them costs on these cores",
            "times are the server's, from a request's arrival to its first token; client_ttft_p99_s is what the client "
            "saw, which shares the cores with the server and with the flooder",
        ],
    )


def _flooded(flood: float, terms: str, repeat: int) -> Figures:
    per_s, _ = _capacity()
    keys = tenant_row("victim", VICTIM) + tenant_row("flooder", FLOODER, more=terms)
    with _model("--max-queued-requests=4096", keys=keys) as (served, target, pool):
        rng = random.Random(200 + repeat)
        times = load.poisson(rng, int(WINDOW_S * per_s * VICTIM_SHARE), per_s * VICTIM_SHARE)
        own = _asks(rng, pool, times)
        asyncio.run(load.run_closed(target, _asks(rng, pool, [0.0] * MAX_NUM_SEQS), 4))
        flooding: list[Ask] = []
        if flood:
            arrivals = load.poisson(rng, int(WINDOW_S * per_s * flood), per_s * flood)
            long = (FLOOD_PROMPT, FLOOD_PROMPT)
            flooding = _asks(
                rng, pool, arrivals, prompt=long, key=FLOODER, more={"deadline_ms": int(1000 * WINDOW_S)}
            )
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as elsewhere:
            sent = elsewhere.submit(_sent, target, flooding)
            mine = asyncio.run(load.run_open(target, own))
            ttfts = _served_ttfts(served, len(own))
            answered = sent.result()
    _refuse_failures(mine)
    return {
        "ttft_p99_s": load.percentile(ttfts, 0.99),
        "ttft_p50_s": load.percentile(ttfts, 0.5),
        "client_ttft_p99_s": load.percentile([one.ttft_s for one in mine], 0.99),
        "tpot_p50_s": load.percentile([one.tpot_s for one in mine], 0.5),
        "flood_answered_per_s": answered / WINDOW_S,
    }


def _sent(target: Target, asks: Sequence[Ask]) -> int:
    """In a process of its own: how many were answered."""
    return sum(one.code is None for one in asyncio.run(load.run_open(target, asks)))


def _served_ttfts(served: Served, count: int) -> list[float]:
    """From the arrival of the last `count` requests of the victim to their first tokens, on the server's clock."""
    shown = served.get("/console/requests", headers={"authorization": f"Bearer {VICTIM}"}).json()["requests"]
    models = [span["children"][0]["attributes"] for span in shown[-count:]]
    if len(models) != count:
        raise GateFailed(f"{count} requests were sent, and the server remembers {len(models)}")
    return [float(attributes["gen_ai.response.time_to_first_chunk"]) for attributes in models]


def batch(_: Settings) -> Bench:
    return Bench(
        question="How much later is the first token of online requests while a batch uses the idle capacity?",
        slug=slug("http batch quire"),
        figure="ttft_p99_s",
        unit="s",
        better="lower",
        shape=_shape(online_share=0.5, batch_lines=BATCH_LINES),
        gate=_gate_model,
        subjects={
            "online alone": functools.partial(_beside_batch, 0),
            "beside a batch": functools.partial(_beside_batch, BATCH_LINES),
        },
    )


def _beside_batch(num_lines: int, repeat: int) -> Figures:
    per_s, _ = _capacity()
    with _model() as (served, target, pool):
        rng = random.Random(300 + repeat)
        times = load.poisson(rng, int(WINDOW_S * per_s * 0.5), per_s * 0.5)
        online = _asks(rng, pool, times)
        asyncio.run(load.run_closed(target, _asks(rng, pool, [0.0] * MAX_NUM_SEQS), 4))
        if num_lines:
            _begin_batch(served, rng, pool, num_lines)
        before = _tokens(served)
        outcomes = asyncio.run(load.run_open(target, online))
        drawn = _tokens(served) - before
    _refuse_failures(outcomes)
    ttfts = [one.ttft_s for one in outcomes]
    own = sum(one.num_tokens for one in outcomes)
    return {
        "ttft_p99_s": load.percentile(ttfts, 0.99),
        "ttft_p50_s": load.percentile(ttfts, 0.5),
        "tpot_p50_s": load.percentile([one.tpot_s for one in outcomes], 0.5),
        "batch_tokens_per_s": max(drawn - own, 0.0) / WINDOW_S,
    }


def _begin_batch(served: Served, rng: random.Random, pool: Sequence[int], num_lines: int) -> None:
    lines = [
        {
            "custom_id": str(number),
            "method": "POST",
            "url": "/v1/completions",
            "body": {"prompt": ask.prompt, "max_tokens": ask.num_output_tokens, "ignore_eos": True},
        }
        for number, ask in enumerate(_asks(rng, pool, [0.0] * num_lines))
    ]
    content = "\n".join(map(json.dumps, lines)).encode()
    client: httpx.Client = served.client
    made = client.post("/v1/files", files={"file": ("in.jsonl", content)}, data={"purpose": "batch"}).json()
    asked = {"input_file_id": made["id"], "endpoint": "/v1/completions", "completion_window": "24h"}
    begun = client.post("/v1/batches", json=asked).json()["id"]
    while client.get(f"/v1/batches/{begun}").json()["request_counts"]["completed"] < MAX_NUM_SEQS:
        pass


def _tokens(served: Served) -> float:
    """Output tokens so far."""
    for line in served.get("/metrics").text.splitlines():
        if line.startswith('octavo_tokens_total{direction="output"}'):
            return float(line.split()[-1])
    return 0.0


def s1(_: Settings) -> Bench:
    lengths = trace.lengths(LONGEST_PROMPT, LONGEST_OUTPUT)
    return Bench(
        question="S1: how are times and goodput at 0.5, 0.8, 1.0 and 1.2 of capacity, lengths from a public trace?",
        slug=slug("http s1 quire"),
        figure="good_share",
        unit="of offered",
        better="higher",
        shape=_shape(
            rates=RATES,
            trace=trace.source(),
            longest=(LONGEST_PROMPT, LONGEST_OUTPUT),
            prompt_tokens=None,
        ),
        gate=_gate_model,
        subjects={f"{rate:g} of capacity": functools.partial(_at_rate, lengths, rate) for rate in RATES},
        notes=[
            f"prompts of the trace are cut to {LONGEST_PROMPT} tokens and answers to {LONGEST_OUTPUT}",
            "good is a first token within 1 s and a mean of 50 ms for each one after",
            "capacity is the request rate of a closed loop with as many requests under way as there are seats",
        ],
    )


@functools.cache
def _trace_capacity() -> float:
    lengths = trace.lengths(LONGEST_PROMPT, LONGEST_OUTPUT)
    with _model() as (_, target, pool):
        rng = random.Random(8)
        asks = [
            Ask(0.0, rng.choices(pool, k=prompt), out)
            for prompt, out in rng.sample(lengths, CAPACITY_REQUESTS)
        ]
        asyncio.run(load.run_closed(target, _asks(rng, pool, [0.0] * 2 * MAX_NUM_SEQS), MAX_NUM_SEQS))
        outcomes = asyncio.run(load.run_closed(target, asks, MAX_NUM_SEQS))
    _refuse_failures(outcomes)
    return load.summary(outcomes, Slo()).goodput_per_s


def _at_rate(lengths: Sequence[tuple[int, int]], rate: float, repeat: int) -> Figures:
    per_s = _trace_capacity() * rate
    with _model() as (_, target, pool):
        rng = random.Random(400 + repeat)
        times = load.poisson(rng, max(int(2 * WINDOW_S * per_s), 10), per_s)
        asks = []
        for at_s in times:
            prompt, output = rng.choice(lengths)
            asks.append(Ask(at_s, rng.choices(pool, k=prompt), output))
        asyncio.run(load.run_closed(target, _asks(rng, pool, [0.0] * MAX_NUM_SEQS), 4))
        outcomes = asyncio.run(load.run_open(target, asks))
    _refuse_failures(outcomes)
    found = load.summary(outcomes, Slo(ttft_s=1.0, tpot_s=0.05))
    figures = {
        f"{name}_{part}_s": found.percentiles_s[name][part]
        for name in ("ttft", "tpot")
        for part in ("p50", "p99")
    }
    offered_per_s = len(asks) / times[-1]
    return {
        "good_share": found.num_good / len(asks),
        "offered_per_s": offered_per_s,
        "goodput_per_s": found.num_good / max(found.wall_s, times[-1]),
        **figures,
    }


QUESTIONS: Mapping[str, Callable[[Settings], Bench]] = {
    "front": front,
    "overload": overload,
    "neighbours": neighbours,
    "batch": batch,
    "s1": s1,
}


if __name__ == "__main__":
    sys.exit(main())
