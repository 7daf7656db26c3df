"""The load that `octavo bench serve` makes: at its times, counted rightly, refusals and breaks told apart."""

from __future__ import annotations

import asyncio
import json
import math
import random
import statistics

import pytest

from octavo.cli import load
from octavo.cli.load import Ask, Outcome, Slo, Target
from octavo.cli.main import main
from octavo.errors import ConfigError
from tests.server.process import Served, serving

KEY = "a-key-for-load"


@pytest.fixture(scope="module")
def served(folder):
    with serving([str(folder), "--api-key", KEY, "--max-queued-requests", "8"]) as made:
        yield made


def target(served: Served) -> Target:
    return Target.of(served.url, None, KEY)


def ask(text: str, at_s: float = 0.0, num_tokens: int = 500) -> Ask:
    return Ask(
        at_s, [{"!": 0}.get(char, ord(char) - 33) if char != " " else 220 for char in text], num_tokens
    )


def run(served: Served, asks: list[Ask]) -> list[Outcome]:
    return asyncio.run(load.run_open(target(served), asks))


def test_an_answer_is_counted_and_timed(served):
    (one,) = run(served, [ask("!slow say:abcdefgh")])
    assert one.code is None
    assert one.num_tokens == 8
    assert len(one.gaps_s) == 7
    assert sum(one.gaps_s) == pytest.approx(one.last_s - one.first_s)
    assert one.tpot_s == pytest.approx(statistics.mean(one.gaps_s))
    assert one.tpot_s > 0.04, "the engine makes a pause of 50 ms between tokens"
    assert 0 < one.ttft_s < one.last_s


def test_requests_go_out_at_their_times_whatever_the_answers_do(served):
    asks = [ask("!slow say:abcdefghij", at_s) for at_s in (0.0, 0.1, 0.2)]
    outcomes = run(served, asks)
    assert [round(one.sent_s, 1) for one in outcomes] == [0.0, 0.1, 0.2]
    assert outcomes[2].sent_s < outcomes[0].last_s


def test_a_closed_loop_has_so_many_under_way(served):
    asks = [ask("!slow say:abc") for _ in range(6)]
    outcomes = asyncio.run(load.run_closed(target(served), asks, 2))
    assert [one.num_tokens for one in outcomes] == [3] * 6
    for moment in (one.sent_s for one in outcomes):
        assert sum(one.sent_s <= moment < one.last_s for one in outcomes) <= 2


def test_what_goes_wrong_is_told_by_its_code(served):
    outcomes = run(served, [ask("!error"), ask("!busy"), ask("say:fine")])
    assert [one.code for one in outcomes] == ["engine_error", "overloaded", None]
    assert outcomes[1].retry_after_s == 8.0
    (wrong,) = asyncio.run(load.run_open(Target.of(served.url, None, "another-key"), [ask("say:x")]))
    assert wrong.code == "invalid_api_key"
    found = load.summary(outcomes, Slo())
    assert found.codes == {"engine_error": 1, "overloaded": 1}
    assert (found.num_good, found.num_tokens, found.num_requests) == (1, 4, 3)


def test_a_server_that_closes_in_the_middle_is_a_loss():
    async def scene(answer: bytes) -> Outcome:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            writer.close()

        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            (one,) = await load.run_open(Target("127.0.0.1", port), [Ask(0.0, [1], 5)])
            return one

    head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    event = b'data: {"choices":[{"text":"a"}]}\n\n'
    piece = b"%x\r\n%s\r\n" % (len(event), event)
    for answer in (b"", head, head + piece, head + piece + b"0\r\n\r\n", head + piece[:9]):
        assert asyncio.run(scene(answer)).code == load.LOST, answer
    done = b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"
    assert asyncio.run(scene(head + piece + done)).code is None


def test_poisson_arrivals():
    times = load.poisson(random.Random(1), 20_000, 50.0)
    gaps = [later - now for now, later in zip([0.0, *times], times, strict=False)]
    assert statistics.mean(gaps) == pytest.approx(1 / 50, rel=0.03)
    assert statistics.stdev(gaps) == pytest.approx(1 / 50, rel=0.03), "as wide as they are long"
    assert times == sorted(times)


@pytest.mark.parametrize(
    ("values", "part", "want"),
    [([3, 1, 2], 0.5, 2), ([1, 2], 0.5, 1.5), ([5], 0.99, 5), ([1, math.inf], 0.9, math.inf)],
)
def test_percentiles(values, part, want):
    assert load.percentile(values, part) == want


def test_nothing_has_no_percentile():
    assert math.isnan(load.percentile([], 0.5))


def test_an_answer_is_good_by_its_times():
    one = Outcome(Ask(0.0, [1], 3), sent_s=1.0, first_s=1.2, last_s=1.4, num_tokens=3)
    assert Slo().is_met(one)
    assert Slo(ttft_s=0.3, tpot_s=0.11).is_met(one)
    assert not Slo(ttft_s=0.1).is_met(one)
    assert not Slo(tpot_s=0.09).is_met(one)
    one.code = "overloaded"
    assert not Slo().is_met(one)


@pytest.mark.parametrize("how", [["--rate", "200"], ["--concurrency", "2"]])
def test_the_command(served, capsys, how):
    sizes = ["--requests", "6", "--prompt-tokens", "4-8", "--output-tokens", "3-9", "--slo-ttft", "10s"]
    words = ["bench", "serve", "--url", served.url, "--api-key", KEY, *sizes, *how]
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["num_requests"], found["codes"]) == (6, {})
    assert found["num_good"] == 6
    assert set(found["percentiles_s"]) == {"ttft", "tpot", "itl", "e2e"}
    assert main(words) == 0
    assert "6 good ones" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "needs --url"),
        (["--url", "ftp://x"], "either --rate or --concurrency"),
        (["--url", "ftp://x", "--rate", "1"], "must be an address"),
        (["--url", "http://127.0.0.1:1", "--rate", "1"], "does not answer"),
        (["--url", "http://127.0.0.1:1", "--rate", "0"], "must be above 0"),
        (["--url", "http://127.0.0.1:1", "--rate", "1", "--slo-ttft", "soon"], "--slo-ttft"),
        (["--url", "http://127.0.0.1:1", "--rate", "1", "--repeats", "2"], "no use for --repeats"),
    ],
)
def test_what_makes_no_sense_is_refused(capsys, words, says):
    assert main(["bench", "serve", *words]) == 2
    assert says in capsys.readouterr().err


def test_a_wrong_key_is_told_at_once(served):
    with pytest.raises(ConfigError, match="API key"):
        asyncio.run(load.token_pool(Target.of(served.url, None, "another-key")))
