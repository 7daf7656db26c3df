"""Shipped incidents are recordings like those of a server, the same ones each time, and what they are said to be."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from octavo.errors import ConfigError
from octavo.explain.cases import CASES, HEALTHY, case
from octavo.explain.causes import DETECTORS
from octavo.explain.figures import Figures
from octavo.explain.scenes import play, save
from octavo.explain.story import Story
from octavo.obs import recording
from octavo.obs.flight import Committed, Departed, Planned, Served, Submitted, encoded
from octavo.obs.recording import Recording
from octavo.obs.replay import replay
from tests.explain.incidents import figures, played

REPLAYED = ("kv-exhausted", "cache-thrash", "flood")
"""Whole ones, among them preemptions, evictions, and several clients in namespaces of their own."""


def entries(found: Recording) -> list[list[bytes]]:
    return [[encoded(entry) for entry in one.entries] for one in found.engines]


@pytest.mark.parametrize("name", REPLAYED)
def test_an_engines_trail_can_be_replayed_step_for_step(name):
    found, _ = played(name)
    for engine in found.engines:
        assert engine.opened.is_whole
        steps = replay(engine.entries, check=False)
        planned = sum(isinstance(entry, Planned) and entry.number >= 0 for entry in engine.entries)
        assert len(steps) == planned > 100


@pytest.mark.parametrize("name", ["few-seats", "reservation"])
def test_a_scene_is_the_same_each_time(name):
    first, _ = played(name)
    again, _ = play(case(name).scene)
    assert entries(first) == entries(again)
    assert first.front == again.front


def test_a_file_of_it_reads_as_it_was(tmp_path):
    found, _ = played("engine-lost")
    path = tmp_path / "lost.recording"
    assert save(path, found) == path.stat().st_size
    back = recording.read(path)
    assert (back.saved, back.front) == (found.saved, found.front)
    assert entries(back) == entries(found)
    assert [(one.number, one.epoch) for one in back.engines] == [(0, 2), (1, 1)]
    assert sum(isinstance(entry, Departed) for entry in back.front) == 1


def test_what_the_front_noted_is_what_the_simulator_reports():
    found, outcome = played("long-prompts")
    served = {entry.prompts[0]: entry for entry in found.front if isinstance(entry, Served)}
    assert len(served) == len(outcome.served)
    for one in outcome.served:
        entry = served[one.request_id]
        assert entry.received_s == one.job.at_ns / 1e9
        assert (entry.prompt_tokens, entry.output_tokens) == (one.num_prompt_tokens, one.num_tokens)
        assert entry.received_s < entry.posted_s < entry.first_s < entry.last_s < entry.sent_s


def test_steps_end_when_they_are_committed_and_do_not_overlap():
    found, _ = played("busy")
    ended_s = 0.0
    for entry in found.engines[0].entries:
        if isinstance(entry, Committed):
            assert ended_s <= entry.launched_s + 1e-9
            assert entry.launched_s < entry.ended_s <= entry.now_s
            ended_s = entry.ended_s


def test_a_reservation_holds_a_fifth_to_two_fifths_and_paging_nearly_all():
    """As Kwon et al. 2023 measured (figure 2): 20.4 to 38.2 % of what is reserved holds tokens, 96.3 % with paging."""
    scene = case("reservation").scene
    paged, _ = play(replace(scene, baseline=None))
    assert 0.2 < figures("reservation").stored_share < 0.4
    assert Figures(Story(paged)).stored_share > 0.96


def test_a_baseline_reserves_one_piece_of_memory_for_each_request():
    found, _ = played("reservation")
    (engine,) = found.engines
    blocks = -(-engine.opened.limits.max_model_len // engine.opened.limits.block_tokens)
    held = [
        piece[5]
        for entry in engine.entries
        if isinstance(entry, Planned)
        for piece in entry.pieces
        if piece[5]
    ]
    assert len(held) == sum(isinstance(entry, Submitted) for entry in engine.entries)
    for one in held:
        assert one == tuple(range(one[0], one[0] + blocks))
        assert one[-1] < engine.opened.limits.num_blocks


def test_tenants_have_namespaces_of_their_own_where_they_should():
    spaces = {life.namespace for life in figures("private-prefixes").lives}
    assert len(spaces) == len({life.client for life in figures("private-prefixes").lives}) > 50
    assert b"" not in spaces


def test_an_unknown_case_is_answered_with_the_known_ones():
    with pytest.raises(ConfigError, match="few-seats"):
        case("few-seat")


def test_names_and_causes():
    assert all(one.cause == name for name, one in CASES.items())
    assert all(one.cause is None for one in HEALTHY.values())
    assert not CASES.keys() & HEALTHY.keys()


def test_the_page_lists_the_incidents_and_the_causes():
    page = (Path(__file__).resolve().parents[2] / "docs" / "explain.md").read_text(encoding="utf-8")
    causes, incidents = page.split("## What happened")[1].split("## Shipped incidents")
    rows = dict(re.findall(r"^\| `([a-z-]+)` \| (.*) \|$", incidents, re.MULTILINE))
    assert rows == {name: one.line for name, one in CASES.items()}
    assert set(re.findall(r"^\| `([a-z-]+)` \|", causes, re.MULTILINE)) == {*DETECTORS, "overload"}
