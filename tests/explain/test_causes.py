"""Each shipped incident gets its cause, and no other one; a healthy load gets none."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest

from octavo.explain import ledger as lines
from octavo.explain.cases import CASES, HEALTHY
from octavo.explain.causes import DETECTORS, findings
from octavo.explain.figures import Figures
from octavo.explain.signs import Sign
from octavo.explain.story import Story
from octavo.obs.flight import Served
from octavo.obs.recording import Recording
from tests.explain.incidents import figures, found, played


@pytest.mark.parametrize("name", CASES)
def test_the_first_cause_of_an_incident_is_its_own(name):
    first = found(name)[0]
    assert first.cause == CASES[name].cause
    assert first.stands_out
    assert first.confidence >= 0.7
    assert all(line for line in first.evidence)


@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_load_raises_no_alarm(name):
    assert [one.cause for one in found(name) if one.stands_out] == []


def test_every_cause_but_two_has_an_incident():
    assert {*DETECTORS, "overload"} - {one.cause for one in CASES.values()} == {"slow-front", "slow-clients"}


def test_few_other_causes_stand_out_beside_the_first():
    """What a cause brings about may stand out, too: an engine that has all the work has no seat left."""
    besides = {(name, one.cause) for name in CASES for one in found(name)[1:] if one.stands_out}
    assert besides <= {("unbalanced", "few-seats")}


@pytest.mark.parametrize("name", ["kv-exhausted", "decode-behind", "engine-lost"])
def test_shares_are_shares(name):
    for one in found(name):
        assert 0 <= one.share <= 1
        assert 0 <= one.tail_share <= 1
        assert 0 <= one.confidence <= 1


def changed(name: str, **moves: float) -> list[str]:
    """Causes that stand out when each answer's times are moved by so much."""
    recording, _ = played(name)
    front = []
    for entry in recording.front:
        assert isinstance(entry, Served)
        front.append(
            replace_struct(
                entry,
                received_s=entry.received_s - moves.get("read", 0.0),
                sent_s=entry.sent_s + moves.get("sent", 0.0),
                stalled_s=entry.stalled_s + moves.get("stalled", 0.0),
            )
        )
    story = Story(Recording(recording.saved, front, recording.engines))
    return [one.cause for one in findings(Figures(story)) if one.stands_out]


def replace_struct(entry: Served, **values: float) -> Served:
    return msgspec.structs.replace(entry, **values)


def test_a_slow_front_and_slow_clients_are_told_apart():
    assert changed("quiet", read=2.0) == ["slow-front"]
    assert changed("quiet", sent=2.0) == ["slow-clients"]
    assert changed("quiet", sent=2.0, stalled=2.0) == ["slow-clients"]


def test_a_sign_is_between_nothing_and_plain():
    assert [Sign("", value, 0.2, 0.6).strength for value in (0.0, 0.2, 0.3, 0.6, 0.9)] == pytest.approx(
        [0, 0, 0.25, 1, 1]
    )
    assert [Sign("", value, 0.9, 0.6).strength for value in (1.0, 0.9, 0.75, 0.6, 0.1)] == pytest.approx(
        [0, 0, 0.5, 1, 1]
    )


def test_an_interval_is_looked_at_by_itself():
    """The engine goes at 20 s; before, nothing stands out."""
    story = figures("engine-lost").story
    early = Figures(story, 0.0, 10.0)
    assert early.rows
    assert all(ledger.to_s <= early.end_s + 1e-9 for _, _, ledger in early.rows)
    assert [one.cause for one in findings(early) if one.stands_out] == []
    late = Figures(story, 10.0, 30.0)
    assert findings(late)[0].cause == "engine-lost"


def test_clipped_ledgers_still_add_up():
    story = figures("kv-exhausted").story
    for _, _, ledger in Figures(story, 5.0, 15.0).rows:
        assert sum(line.seconds for line in ledger.lines) == pytest.approx(ledger.wall_s, abs=1e-6)
        assert ledger.wall_s <= 10.0 + 1e-9


@pytest.mark.parametrize("name", ["few-seats", "kv-exhausted", "long-prompts"])
def test_a_recording_whose_beginning_is_overwritten_tells_the_same(name):
    recording, _ = played(name)
    (engine,) = recording.engines
    kept = engine.entries[len(engine.entries) // 3 :]
    opened = msgspec.structs.replace(engine.opened, is_whole=False)
    half = replace(engine, entries=[opened, *kept])
    story = Story(Recording(recording.saved, recording.front, [half]))
    assert 0 < len(story.ended()) < len(figures(name).story.ended())
    assert findings(Figures(story))[0].cause == name


def test_prefixes_computed_again_are_counted():
    """By hand, from what was sent: every request of a tenant but its first had its prefix of 4096 tokens before."""
    one = figures("private-prefixes")
    tokens = sum(reuse.foreign for reuse in one.reuse.values())
    came, again = set[bytes](), 0
    for life in sorted(one.lives, key=lambda life: life.submitted_s):
        again += life.namespace not in came and bool(came)
        came.add(life.namespace)
    assert 0.8 * again * 4096 < tokens <= again * 4096


def test_lost_memory_is_waited_for_and_computed_again():
    one = figures("kv-exhausted")
    causes = {line.cause for _, life, ledger in one.rows if life.lost for line in ledger.lines}
    assert lines.AGAIN in causes
    assert not any(
        line.cause == lines.AGAIN for _, life, ledger in one.rows if not life.lost for line in ledger.lines
    )
    assert sum(len(life.lost) for life in one.lives) > 100


def test_a_recording_without_requests_has_no_findings():
    recording, _ = played("quiet")
    assert findings(Figures(Story(Recording(recording.saved)))) == []
    engine = replace(recording.engines[0], entries=recording.engines[0].entries[:1])
    assert findings(Figures(Story(Recording(recording.saved, [], [engine])))) == []
