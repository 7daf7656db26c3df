"""S1 beside peers that are small fakes: equal requests at equal times, forced lengths, two kinds of streams, goodput
by hand, and servers that die, hang or answer wrongly."""

from __future__ import annotations

import itertools
import json
import math
import random
import statistics
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benches.peers import served, servers, windows
from benches.peers.drivers.common import Task
from benches.peers.process import Outcome, Plan
from benches.peers.servers import FRONTS, Front, Server
from benches.peers.subjects import OURS, SUBJECTS, Subject
from benches.peers.windows import Terms, Unserved, Window
from benches.record import read
from benches.serving.workloads import CONFIGS
from octavo import bundled
from octavo.arch import Arch
from octavo.cli.load import Ask, Slo
from octavo.cli.load import Outcome as Answer
from octavo.errors import ConfigError
from tests.benches.made import LIMITS

FAKE = Path(__file__).with_name("fake_served.py")
ARCH = Arch.from_file(CONFIGS / "qwen3-0.6b.json")
LENGTHS = [(3, 4), (5, 6), (8, 2)]
Make = Callable[..., served.Asking]


def terms(**changes: Any) -> Terms:
    made = Terms(lengths=LENGTHS, vocab_size=1000, window_s=0.4, seats=2, slo=Slo(ttft_s=5.0, tpot_s=5.0))
    return replace(made, **changes)


def subject(name: str, precision: str = "int8") -> Subject:
    (one,) = [one for one in SUBJECTS if (one.name, one.precision) == (name, precision)]
    return one


OCTAVO, LLAMA, VLLM = subject(OURS), subject("llama.cpp-q8_0"), subject("vllm-w8a8")


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """How each driver's fake behaves; every fake writes to a journal named after its driver."""
    behaviours = dict.fromkeys(FRONTS, "well")
    monkeypatch.setattr(Subject, "missing", lambda *_: None)

    def front(driver: str) -> Front:
        def command(_subject: Subject, _task: Task, port: int, _folder: Path) -> list[str]:
            return [sys.executable, str(FAKE), str(port), str(tmp_path / driver), behaviours[driver]]

        return replace(FRONTS[driver], command=command)

    monkeypatch.setattr(servers, "FRONTS", {driver: front(driver) for driver in FRONTS})
    return behaviours


@pytest.fixture
def asking(tmp_path: Path, fakes: dict[str, str]) -> Make:
    del fakes
    (tmp_path / "logs").mkdir()

    def make(**changes: Any) -> served.Asking:
        made = served.Asking(
            plan=Plan(model="qwen3-0.6b", arch=ARCH, shapes=[], num_threads=2),
            terms=terms(),
            num_capacity_requests=4,
            timeout_s=30.0,
            patience_s=0.0,
            logs=tmp_path / "logs",
            capacities={"int8": 20.0},
        )
        return replace(made, **changes)

    return make


def journal(tmp_path: Path, driver: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (tmp_path / driver).read_text().splitlines()]


# What is sent


def test_a_window_offers_the_rate_it_is_named_after() -> None:
    made = terms(window_s=50.0)
    for rate in (0.5, 1.2):
        asks = made.asks(Window(rate), 20.0, 0)
        assert len(asks) == 50 * rate * 20
        times = [one.at_s for one in asks]
        assert times == sorted(times)
        assert times[0] > 0
        assert times[-1] < 50.0
        assert {(len(one.prompt), one.num_output_tokens) for one in asks} == set(LENGTHS)
        assert all(0 <= token < 1000 for one in asks for token in one.prompt)
    assert len(made.asks(Window(0.5), 1e-9, 0)) == 1


def test_arrivals_are_as_irregular_as_a_poisson_process() -> None:
    times = windows.arrivals(random.Random(3), 20_000, 100.0)
    gaps = [later - now for now, later in itertools.pairwise(times)]
    assert statistics.mean(gaps) == pytest.approx(100 / 20_000, rel=0.03)
    assert statistics.stdev(gaps) == pytest.approx(statistics.mean(gaps), rel=0.03)
    in_tenths = [sum(10 * tenth <= at_s < 10 * tenth + 10 for at_s in times) for tenth in range(10)]
    assert all(abs(count - 2000) < 5 * math.sqrt(1800) for count in in_tenths)


def test_requests_differ_by_round_and_rate_only() -> None:
    made = terms()
    first = made.asks(Window(1.0), 20.0, 0)
    assert first == made.asks(Window(1.0), 20.0, 0)
    assert first != made.asks(Window(1.0), 20.0, 1)
    assert first[0].prompt != made.asks(Window(0.8), 20.0, 0)[0].prompt
    assert len(made.warmup({})) == 2
    assert {one.prompt[0] for one in made.crowd("a", 9, {})} != {
        one.prompt[0] for one in made.crowd("b", 9, {})
    }


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: terms(window_s=0.0), "--window-s must be above 0"),
        (lambda: terms(seats=0), "--seats must be at least 1, got 0"),
        (lambda: terms(slo=Slo(ttft_s=0.0)), "--slo-ttft-s and --slo-tpot-s must be above 0"),
        (lambda: windows.windows("0.5,fast"), "--rates must be numbers"),
        (lambda: windows.windows("0.5,0"), "--rates must be finite, above 0"),
        (lambda: windows.windows("0.5,0.5"), "each another one"),
    ],
)
def test_what_cannot_be_asked_is_refused(make: Callable[[], object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        make()


# What is made of it


def answer(sent_s: float, first_s: float, last_s: float, count: int, code: str | None = None) -> Answer:
    ask = Ask(sent_s, [1], count)
    return Answer(ask, sent_s, None if code else first_s, last_s, 0 if code else count, code=code)


def test_figures_by_hand() -> None:
    rng = random.Random(5)
    answers = []
    for _ in range(200):
        sent_s = rng.uniform(0, 10)
        first_s = sent_s + rng.expovariate(1 / 1.5)
        count = rng.randint(2, 9)
        answers.append(answer(sent_s, first_s, first_s + (count - 1) * rng.uniform(0.05, 0.2), count))
    answers += [answer(1.0, 0.0, 1.1, 4, code="overloaded") for _ in range(50)]
    found = windows.figures(answers, terms(window_s=10.0, slo=Slo(ttft_s=2.0, tpot_s=0.15)))
    good = 0
    for one in answers:
        if one.code is None and one.first_s is not None:
            late = one.first_s - one.sent_s > 2.0
            slow = (one.last_s - one.first_s) > 0.15 * (one.ask.num_output_tokens - 1)
            good += not late and not slow
    assert 0 < good < 200
    assert found["good_share"] == good / 250
    assert found["goodput_per_s"] == good / 10
    assert found["offered_per_s"] == 25.0
    assert found["refused_share"] == 0.2
    waits = sorted(one.first_s - one.sent_s for one in answers if one.first_s is not None)
    assert found["ttft_p50_s"] == pytest.approx(statistics.median(waits))
    percents = statistics.quantiles(waits, n=100, method="inclusive")
    assert found["ttft_p99_s"] == pytest.approx(percents[98])
    assert found["drained_s"] == max(one.last_s for one in answers)


def test_what_is_no_answer_is_not_timed() -> None:
    fine = answer(0.0, 1.0, 2.0, 4)
    refused = answer(0.0, 0.0, 1.0, 4, code="overloaded")
    windows.refuse([fine, refused])
    wordless = answer(0.0, 1.0, 2.0, 4)
    wordless.first_s = None
    short = answer(0.0, 1.0, 2.0, 4)
    short.num_tokens = 3
    for answers, says in (
        ([fine, answer(0.0, 0.0, 1.0, 4, code="500")], "1 of 2 requests ended with 500"),
        ([fine, short], "3 tokens came, 4 were asked for"),
        ([wordless], "an answer of 4 tokens showed none of them"),
        ([refused], "none of 1 requests was answered"),
    ):
        with pytest.raises(Unserved, match=says):
            windows.refuse(answers)
    with pytest.raises(Unserved, match="1 of 2 requests ended with overloaded"):
        windows.capacity([fine, refused])
    assert windows.capacity([fine, answer(0.0, 1.0, 4.0, 4)]) == pytest.approx(0.5)


# Servers


def test_every_server_is_sent_the_same_at_the_same_times(tmp_path: Path, asking: Make) -> None:
    ask = asking()
    asked = [Window(0.5), Window(1.0)]
    sent: dict[str, list[Any]] = {}
    for one in (OCTAVO, LLAMA, VLLM):
        outcome = ask(one, asked, 0)
        assert outcome.reason is None
        assert list(outcome.figures) == ["S1 at 0.5", "S1 at 1"]
        found = outcome.figures["S1 at 1"]
        assert (found["good_share"], found["offered_per_s"]) == (1.0, 20.0)
        assert found["peak_bytes"] > 2**20
        assert 0 < found["tpot_p50_s"] <= found["tpot_p99_s"]
        lines = journal(tmp_path, one.driver)
        assert {line["path"] for line in lines} == {"/completion" if one is LLAMA else "/v1/completions"}
        sent[one.driver] = lines[-8:]
        assert len(lines) == 2 + 4 + 8, "a warm-up of one for each seat, then two windows"
    want = terms().asks(Window(1.0), 20.0, 0)
    for driver, lines in sent.items():
        counts = "n_predict" if driver == "llama_server" else "max_tokens"
        got = {(tuple(one["asked"]["prompt"]), one["asked"][counts]) for one in lines}
        assert got == {(tuple(one.prompt), one.num_output_tokens) for one in want}
        for line in lines:
            assert line["asked"]["ignore_eos"] is True
            assert line["asked"]["temperature"] == 0
            assert line["asked"]["stream"] is True


def test_arrivals_keep_their_times_while_answers_are_slow(tmp_path: Path, asking: Make) -> None:
    made = terms(window_s=1.0, lengths=[(3, 60)])  # an answer takes a quarter of a second or more
    outcome = asking(terms=made)(VLLM, [Window(1.0)], 0)
    assert outcome.reason is None
    lines = journal(tmp_path, "vllm_cpu")[-20:]
    want = [one.at_s for one in made.asks(Window(1.0), 20.0, 0)]
    came = [line["at"] - lines[0]["at"] for line in lines]
    late = [got - (at_s - want[0]) for got, at_s in zip(came, want, strict=True)]
    assert statistics.median(map(abs, late)) < 0.3
    assert outcome.figures["S1 at 1"]["drained_s"] > want[-1] + 60 * 0.004


@pytest.mark.parametrize("one", [LLAMA, VLLM], ids=lambda one: one.name)
def test_an_answer_that_is_too_short_is_not_timed(one: Subject, fakes: dict[str, str], asking: Make) -> None:
    fakes[one.driver] = "short"
    outcome = asking()(one, [Window(1.0)], 0)
    assert outcome.figures == {}
    assert outcome.reason is not None
    assert "tokens came" in outcome.reason


def test_a_server_that_dies_keeps_the_windows_before(fakes: dict[str, str], asking: Make) -> None:
    fakes["vllm_cpu"] = "dies:9"  # after a warm-up of 2, a window of 4 and two requests of the next
    outcome = asking()(VLLM, [Window(0.5), Window(1.0), Window(1.2)], 0)
    assert list(outcome.figures) == ["S1 at 0.5"]
    assert outcome.reason == "ended with exit code 3; it said: out of luck"


@pytest.mark.parametrize(
    ("behaviour", "timeout_s", "says"),
    [
        ("sick", 30.0, "ended with exit code 4; it said: cannot start"),
        ("hangs", 1.0, "not done within 1 s"),
        ("breaks", 30.0, "2 of 2 requests ended with 500"),
        ("refuses", 30.0, "1 of 2 requests ended with overloaded"),
    ],
)
def test_why_a_server_is_skipped(
    behaviour: str, timeout_s: float, says: str, fakes: dict[str, str], asking: Make
) -> None:
    fakes["vllm_cpu"] = behaviour
    outcome = asking(timeout_s=timeout_s)(VLLM, [Window(1.0)], 0)
    assert (outcome.figures, outcome.reason) == ({}, says)


def test_no_process_is_left_behind(asking: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = []
    start = servers.start

    def noted(*words: Any) -> Any:
        begun.append(start(*words))
        return begun[-1]

    def fails(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(servers, "start", noted)
    monkeypatch.setattr(served, "measured", fails)
    with pytest.raises(KeyboardInterrupt):
        asking()(VLLM, [Window(1.0)], 0)
    assert [one.returncode is not None for one in begun] == [True]


def test_capacity_is_octavos_and_measured_once(tmp_path: Path, fakes: dict[str, str], asking: Make) -> None:
    ask = asking(capacities={})
    per_s = ask.capacity("int8")
    assert isinstance(per_s, float)
    lines = journal(tmp_path, "octavo_llm")
    assert len(lines) == 2 + 4
    waited_s = lines[-1]["at"] - lines[2]["at"]
    assert 4 / (waited_s + 10.0) < per_s < 4 / waited_s
    assert ask.capacity("int8") == per_s
    assert len(journal(tmp_path, "octavo_llm")) == 6
    fakes["octavo_llm"] = "sick"
    outcome = ask(subject("vllm-w4", "int4"), [Window(1.0)], 0)
    assert outcome.figures == {}
    assert outcome.reason == "capacity is not known: octavo: ended with exit code 4; it said: cannot start"


# Commands


def made_task(one: Subject) -> Task:
    plan = Plan(model="qwen3-0.6b", arch=ARCH, shapes=[], num_threads=2)
    return servers.task(one, plan, terms(lengths=[(512, 64), (9, 9)], seats=8))


def option(words: list[str], name: str) -> str:
    return words[words.index(name) + 1]


@pytest.mark.parametrize("one", [OCTAVO, LLAMA, VLLM], ids=lambda one: one.name)
def test_servers_listen_on_the_loopback_and_hold_all_seats(one: Subject, tmp_path: Path) -> None:
    words = FRONTS[one.driver].command(one, made_task(one), 8123, tmp_path)
    assert option(words, "--host") == "127.0.0.1"
    assert option(words, "--port") == "8123"
    if one is LLAMA:
        assert (option(words, "-np"), option(words, "-c")) == ("8", str(8 * 768))
        assert int(option(words, "--threads-http")) >= 256
    else:
        assert (option(words, "--max-num-seqs"), option(words, "--max-model-len")) == ("8", "576")
    if one is OCTAVO:
        assert option(words, "--quantization") == "int8"
        assert int(option(words, "--num-kv-blocks")) * 16 >= 8 * 576
        assert option(words, "--data-dir") == str(tmp_path)


def test_the_two_processes_of_vllm_share_the_cores() -> None:
    offline, served_over_http = VLLM.variables(1), FRONTS["vllm_cpu"].variables(VLLM, made_task(VLLM))
    assert (offline["KMP_BLOCKTIME"], served_over_http["KMP_BLOCKTIME"]) == ("200", "1")
    assert "KMP_AFFINITY" in offline
    assert "KMP_AFFINITY" not in served_over_http
    assert served_over_http["VLLM_CPU_KVCACHE_SPACE"] == "1"
    assert served_over_http["OMP_NUM_THREADS"] == "2"
    assert FRONTS["octavo_llm"].variables(OCTAVO, made_task(OCTAVO)) == OCTAVO.variables(1)


def test_subjects_are_those_with_a_server() -> None:
    names = [one.name for one in servers.served(["int8"])]
    assert names == [OURS, "llama.cpp-q8_0", "vllm-w8a8"]
    with pytest.raises(ValueError, match="no subject of int8 that matches 'openvino' has an HTTP server"):
        servers.served(["int8"], "openvino")


def test_our_own_server_gives_what_it_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "hf").symlink_to(bundled.path())
    monkeypatch.setattr("benches.peers.subjects.MODELS", tmp_path)
    arch = Arch.from_file(bundled.path() / "config.json")
    plan = Plan(model="m", arch=arch, shapes=[], num_threads=1)
    made = terms(vocab_size=arch.vocab_size)
    one = subject(OURS, "bf16")
    with servers.serving(one, servers.task(one, plan, made), 60.0) as server:
        assert isinstance(server, Server)
        found = served.measured(server, made, Window(1.0), 20.0, 0)
    assert (found["good_share"], found["refused_share"]) == (1.0, 0.0)
    assert found["ready_s"] > 0
    assert server.process.returncode is not None


# The command


def test_a_whole_session_leaves_log_records_and_table(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    fakes: dict[str, str],
) -> None:
    fakes["llama_server"] = "sick"
    monkeypatch.setattr(served, "measure_machine", lambda _: LIMITS)
    monkeypatch.setattr(served, "wait_for_quiet", lambda _: None)
    monkeypatch.setattr(served.trace, "lengths", lambda *_: LENGTHS)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    results = tmp_path / "results"
    words = [
        "--precisions", "int8", "--rates", "0.5,1", "--window-s", "0.1", "--seats", "2", "--capacity-requests", "4",
        "--log", str(tmp_path / "log.jsonl"), "--results", str(results),
    ]  # fmt: skip
    assert served.main(words) == 0
    lines = [json.loads(text) for text in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line.get("subject") for line in lines] == [None, OURS, "llama.cpp-q8_0", "vllm-w8a8"]
    half, whole = sorted((read(path) for path in results.rglob("*.json")), key=lambda one: one.shape["rate"])
    assert (half.slug, whole.slug) == ("peers-s1-at-0.5-qwen3-0.6b-int8", "peers-s1-at-1-qwen3-0.6b-int8")
    assert list(whole.subjects) == [OURS, "vllm-w8a8"]
    assert whole.figure == "good_share"
    reason = "llama.cpp-q8_0: unavailable: ended with exit code 4; it said: cannot start"
    assert reason in whole.notes
    assert any(note.startswith("capacity is ") for note in whole.notes)
    assert str(tmp_path) not in whole.command
    shown = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in shown[-4:]] == [
        ["0.5", "int8", OURS], ["0.5", "int8", "vllm-w8a8"], ["1", "int8", OURS], ["1", "int8", "vllm-w8a8"],
    ]  # fmt: skip


def test_what_nobody_answered_is_told() -> None:
    session = served.Session(limits=[LIMITS])
    session.add(VLLM, [Window(1.0)], Outcome(reason="not done within 5 s"))
    assert served.served_report.unanswered(session, [VLLM], [Window(1.0)]) == [
        "S1 at 1 int8: no record: vllm-w8a8: unavailable: not done within 5 s"
    ]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--rates", "none"], "--rates must be numbers"),
        (["--only", "openvino"], "has an HTTP server"),
        (["--precisions", "fp8"], "no precision 'fp8'"),
        (["--window-s", "-1"], "--window-s must be above 0"),
    ],
)
def test_wrong_words_end_with_two(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert served.main(words) == 2
    assert says in capsys.readouterr().err
