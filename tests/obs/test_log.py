"""A line per event, whatever the values hold."""

from __future__ import annotations

import io
import json
from pathlib import Path

from octavo.obs.log import MAX_VALUE_CHARS, Log


def lines(*calls: tuple[str, str, dict[str, object]]) -> list[str]:
    stream = io.StringIO()
    log = Log(stream, lambda: 1_700_000_000.25)
    for level, event, values in calls:
        getattr(log, level)(event, **values)
    return stream.getvalue().splitlines()


def test_a_line_holds_time_level_event_and_pairs():
    (line,) = lines(("note", "engine_ready", {"pid": 12, "load_s": 1.5, "model": "quire"}))
    assert line == "2023-11-14T22:13:20.250Z info engine_ready pid=12 load_s=1.5 model=quire"


def test_levels():
    found = lines(("note", "a", {}), ("warn", "b", {}), ("error", "c", {}))
    assert [line.split()[1:] for line in found] == [["info", "a"], ["warning", "b"], ["error", "c"]]


def test_a_value_stays_on_its_line_and_cannot_pose_as_another():
    (line,) = lines(("note", "x", {"path": 'a b\n2023 error fake="1"'}))
    assert line.endswith('x path="a b\\n2023 error fake=\\"1\\""')


def test_a_value_is_cut_and_none_is_left_out():
    (line,) = lines(("note", "x", {"long": "y" * 10_000, "no": None}))
    assert len(line) < MAX_VALUE_CHARS + 100
    assert "no=" not in line


def test_as_json_a_line_is_an_object_and_numbers_are_numbers():
    stream = io.StringIO()
    log = Log(stream, lambda: 1_700_000_000.25, as_json=True)
    log.warn("x", pid=12, load_s=1.5, ok=True, nan=float("nan"), why='a "b"\nc', path=Path("/a"), no=None)
    log.note("y", long="z" * 10_000)
    first, second = map(json.loads, stream.getvalue().splitlines())
    assert first == {
        "time": "2023-11-14T22:13:20.250Z",
        "level": "warning",
        "event": "x",
        "pid": 12,
        "load_s": 1.5,
        "ok": True,
        "nan": "nan",
        "why": 'a "b"\nc',
        "path": "/a",
    }
    assert len(second["long"]) < MAX_VALUE_CHARS + 10
