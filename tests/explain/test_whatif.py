"""Counterfactuals: the method's error is small where the truth is known, and the advice helps when it is followed."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pytest

from octavo.cli.main import main
from octavo.errors import LoadError
from octavo.explain.arrivals import Bounded, arrivals, busiest, workload
from octavo.explain.cases import CASES, case
from octavo.explain.changes import CHANGES, FREE, NOT_YOURS
from octavo.explain.figures import Figures
from octavo.explain.scenes import play
from octavo.explain.setups import recorded_setup
from octavo.explain.story import Story
from octavo.explain.whatif import what_if
from octavo.obs.recording import Recording
from octavo.sim.report import lines
from octavo.sim.world import Outcome
from tests.explain.incidents import figures, found, played, tried

QUICK = (
    "few-seats",
    "reservation",
    "static-batches",
    "unbalanced",
    "kv-exhausted",
    "engine-lost",
    "host-bound",
)
LONG = ("long-prompts", "flood", "cache-thrash", "overload", "decode-behind")
NEAR = {"overload": 0.15}
"""Half of its requests wait for a step and half do not: the median lies where a step sooner or later moves it most,
though what is fitted to its steps is within 0.2 % of them."""


def of(names: Iterable[str]) -> list[object]:
    """Incidents, those that take seconds to simulate only in the slow suite."""
    return [pytest.param(name, marks=pytest.mark.slow) if name in LONG else name for name in names]


@pytest.mark.parametrize("name", of([*QUICK, *LONG]))
def test_recorded_settings_simulated_are_near_what_was_recorded(name):
    result = tried(name)
    assert result.num_requests == result.num_recorded == len(played(name)[1].served)
    for metric in ("ttft_s", "tpot_s", "e2e_s"):
        for off in result.error[metric].values():
            assert abs(off) < NEAR.get(name, 0.1), (metric, result.error)


def followed(name: str) -> Outcome:
    """The incident's own load on its own deployment, with the advice followed; not by the fitted model."""
    scene, limits = case(name).scene, case(name).scene.limits
    command = tried(name).advice.command
    flag, _, value = command.removeprefix("octavo serve").strip().partition(" ")
    field = FIELDS.get(flag)
    if field is not None:
        changed = replace(scene, limits=replace(limits, **{field: int(value)}))
    elif flag == "--routing":
        changed = replace(scene, routing=value)
    elif flag == "--engines":
        changed = replace(scene, num_replicas=int(value))
    else:
        assert not flag
        changed = replace(scene, baseline=None)
    return play(changed)[1]


FIELDS = {
    "--max-num-seqs": "max_num_seqs",
    "--max-num-mixed-tokens": "max_num_mixed_tokens",
    "--num-kv-blocks": "num_blocks",
}


def p99(outcome: Outcome, metric: str) -> float:
    name = "longest_gap_s" if metric == "gap_s" else metric
    values = [getattr(line, name) for line in lines(outcome)]
    return float(np.percentile([value for value in values if value is not None], 99))


FLAGS = {
    "few-seats": "octavo serve --max-num-seqs ",
    "long-prompts": "octavo serve --max-num-mixed-tokens ",
    "reservation": "octavo serve",
    "static-batches": "octavo serve",
    "unbalanced": "octavo serve --routing least_loaded",
    "cache-thrash": "octavo serve --num-kv-blocks ",
    "kv-exhausted": "octavo serve --num-kv-blocks ",
    "overload": "octavo serve --engines ",
}


@pytest.mark.parametrize("name", of(FLAGS))
def test_the_advice_helps_when_it_is_followed_and_about_as_much_as_was_said(name):
    result, metric = tried(name), found(name)[0].metric
    assert result.advice.command.startswith(FLAGS[name])
    before, after = p99(played(name)[1], metric), p99(followed(name), metric)
    assert after < before * 0.7
    assert result.advice.before_p99_s == pytest.approx(before, rel=0.1)
    assert result.advice.after_p99_s == pytest.approx(after, rel=0.15)


def test_a_flood_of_batches_is_bounded_by_a_flag():
    one = replace(found("flood")[0], client="ann/batch")
    setup, _ = recorded_setup(figures("flood"), arrivals(figures("flood")))
    commands = [change.command for change in CHANGES["concurrency"](setup, one)]
    assert commands == [f"octavo serve --batch-concurrency {most}" for most in (32, 16, 8, 4)]


@pytest.mark.slow
def test_a_flood_is_bounded_by_a_line_for_its_tenant():
    advice = tried("flood").advice
    assert '[[tenant]] id = "eve": max_concurrency = ' in advice.command
    assert advice.after_p99_s < advice.before_p99_s / 2


def test_the_same_prompts_of_tenants_become_public():
    advice = tried("private-prefixes").advice
    assert "[[public_prefix]]" in advice.command
    assert advice.after_p99_s < advice.before_p99_s / 10


@pytest.mark.slow
def test_only_capacity_helps_against_overload():
    advice = tried("overload").advice
    assert advice.says.startswith("nothing helps but more capacity")
    assert advice.after_p99_s < advice.before_p99_s / 4


@pytest.mark.slow
def test_a_target_decides_how_much_capacity():
    strict, lax = (
        what_if(figures("overload"), found("overload")[0], target_p99_s=target_s) for target_s in (0.9, 5.0)
    )
    assert lax.advice.command == "octavo serve --engines 2"
    assert int(strict.advice.command.rsplit(" ", 1)[1]) > 2
    assert strict.advice.after_p99_s <= 0.9


def test_what_no_setting_mends_has_no_command():
    for name in ("engine-lost", "host-bound"):
        assert tried(name).advice.command == ""
        assert tried(name).advice.after_p99_s is None


@pytest.mark.slow
def test_answers_that_lag_get_an_engine_from_the_prompts():
    result = tried("decode-behind")
    assert result.advice.command == "octavo simulate --replicas 2 --decode-replicas 2"
    assert result.advice.after_p99_s < 0.7 * result.advice.before_p99_s
    assert abs(result.error["e2e_s"]["p99"]) < 0.05


def test_the_same_recording_gives_the_same_advice():
    again = what_if(Figures(Story(played("few-seats")[0])), found("few-seats")[0])
    assert again.advice == tried("few-seats").advice
    assert [one.played.spread for one in again.tried] == [
        one.played.spread for one in tried("few-seats").tried
    ]


def test_changes_cost_something_that_is_known():
    for name in QUICK:
        assert all(FREE <= one.change.cost <= NOT_YOURS for one in tried(name).tried)
    assert {name for one in CASES for name in found(one)[0].bears_on} <= CHANGES.keys()


def test_prefixes_of_different_namespaces_stay_apart_unless_they_are_made_public():
    came = arrivals(figures("private-prefixes"))
    first, second = came[0], next(one for one in came if one.row.client != came[0].row.client)
    assert first.row.spelled.space != second.row.spelled.space
    assert first.row.spelled.prompt[:4096] == second.row.spelled.prompt[:4096]
    apart, public = (list(workload(came, is_public=value).arrivals()) for value in (False, True))
    assert apart[0].prompt[0] != public[1].prompt[0]
    assert public[0].prompt[0][0] == public[1].prompt[0][0]


def test_arrivals_are_those_that_were_sent():
    came, (_, outcome) = arrivals(figures("engine-lost")), played("engine-lost")
    sent = sorted(outcome.served, key=lambda one: one.job.at_ns)
    assert len(came) == len(sent)
    first_s = sent[0].job.at_ns / 1e9
    for one, job in zip(came, sent, strict=True):
        assert one.row.arrival_s == pytest.approx(job.job.at_ns / 1e9 - first_s, abs=1e-6)
        assert one.row.prompt_tokens == job.num_prompt_tokens
        assert one.row.output_tokens == job.num_tokens


def test_the_window_that_is_simulated_holds_the_slowest():
    came = arrivals(figures("few-seats"))
    some = busiest(came, 50)
    assert len(some) == 50
    slowest = max(came, key=lambda one: one.e2e_s)
    assert slowest.request_id in {one.request_id for one in some}
    assert busiest(came, 10_000) == came


def test_a_bounded_client_never_has_more_at_a_time():
    came = arrivals(figures("flood"))
    bounded = Bounded(workload(came), "eve", 3)
    names = [one.row.client for one in came]
    jobs = list(bounded.arrivals())
    waiting = [job for job in jobs if job.client == "eve"]
    assert len(waiting) == 3
    assert len(jobs) - 3 == sum(name != "eve" for name in names)
    let_in, at_ns = 3, 10**12
    while waiting:
        following = bounded.after(waiting.pop(), at_ns, is_answered=True)
        if following is not None:
            assert following.at_ns >= at_ns
            waiting.append(following)
            let_in += 1
    assert let_in == names.count("eve")


def test_too_few_steps_are_said_to_be_too_few():
    recording, _ = played("quiet")
    engine = replace(recording.engines[0], entries=recording.engines[0].entries[:40])
    one = Figures(Story(Recording(recording.saved, [], [engine])))
    with pytest.raises(LoadError, match="30 are the least"):
        what_if(one, found("few-seats")[0])


def test_the_command_says_what_happened_and_ends_with_one_advice(capsys, tmp_path):
    path = tmp_path / "seats.recording"
    assert main(["explain", "--case", "few-seats", "--save", str(path), "--no-what-if"]) == 0
    text = capsys.readouterr().out
    assert "what happened: all 8 seats were taken" in text
    assert "what if" not in text
    assert main(["explain", str(path)]) == 0
    text = capsys.readouterr().out.rstrip()
    assert text.endswith("octavo serve --max-num-seqs 32")
    assert text.count("advice:") == 1
    assert main(["explain", str(path), "--json", "--requests", "60", "--from", "2s", "--to", "20s"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["cause"] == "few-seats"
    assert document["what_if"]["requests"] == 60 < document["what_if"]["requests_recorded"]
    assert main(["explain", "--case", "quiet"]) == 0
    assert "nothing stands out" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "name a FILE"),
        (["a.recording", "--case", "flood"], "name a FILE"),
        (["a.recording", "--save", "b.recording"], "--save writes the recording of a --case"),
        (["--case", "floods"], "no shipped incident is called 'floods'"),
        (["--case", "quiet", "--from", "5s", "--to", "2s"], "must be before"),
        (["--case", "quiet", "--requests", "0"], "at least 1"),
    ],
)
def test_wrong_arguments_are_named(capsys, arguments, said):
    assert main(["explain", *arguments]) == 2
    assert said in capsys.readouterr().err


def test_cases_are_listed(capsys):
    assert main(["explain", "--cases", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["name"]: row["cause"] for row in rows if row["cause"]} == {name: name for name in CASES}
