"""Records: what is written is what is read, nothing names whoever ran it, nothing is overwritten."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from benches import record as records
from tests.benches.made import record


def test_a_record_comes_back_as_it_was(tmp_path: Path) -> None:
    made = record({"a": {"rate_per_s": [1.0, 2.0, 4.0], "peak_bytes": [10, 10, 12]}})
    path = records.write(made, tmp_path)
    assert path == tmp_path / "acme-cpu-9-2.0ghz-2-cores-avx512-bf16" / "2030-01-02-speed.json"
    assert records.read(path) == made
    stored = json.loads(path.read_text())
    assert stored["subjects"]["a"]["rate_per_s"] == {"median": 2.0, "iqr": 1.5, "values": [1.0, 2.0, 4.0]}
    assert stored["correct"] is True
    assert stored["hardware"]["limits"]["read_bytes_per_s"] == 2e10
    assert "int8_op_per_s" not in stored["hardware"]["limits"]


def test_a_second_record_of_a_day_replaces_nothing(tmp_path: Path) -> None:
    first = records.write(record({"a": {"rate_per_s": [1.0]}}), tmp_path)
    second = records.write(record({"a": {"rate_per_s": [2.0]}}), tmp_path)
    assert second.name == "2030-01-02-speed-2.json"
    assert records.read(first).subjects["a"]["rate_per_s"].values == (1.0,)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"question": 3}'])
def test_other_files_are_refused_by_name(tmp_path: Path, text: str) -> None:
    path = tmp_path / "odd.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"odd\.json is no bench record"):
        records.read(path)


def test_a_later_format_is_refused(tmp_path: Path) -> None:
    path = records.write(record({"a": {"rate_per_s": [1.0]}}, format=2), tmp_path)
    with pytest.raises(ValueError, match="format 2; this reads format 1"):
        records.read(path)


@pytest.mark.parametrize(
    ("arguments", "written"),
    [
        (["--model", "quire"], "python -m benches.x --model quire"),
        (["--model", "/home/someone/m/config.json"], "python -m benches.x --model config.json"),
        (["--results=/home/someone/out", "--repeats=7"], "python -m benches.x --results=out --repeats=7"),
    ],
)
def test_the_command_names_no_folder(arguments: list[str], written: str) -> None:
    assert records.command("benches.x", arguments) == written


def test_the_commit_tells_changed_sources_but_not_new_results(tmp_path: Path) -> None:
    assert records.commit(tmp_path) == "unknown"

    def git(*words: str) -> str:
        named = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "init.defaultBranch=main"]
        done = subprocess.run(
            ["git", *named, *words], cwd=tmp_path, check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    git("init", "-q")
    (tmp_path / "benches/results").mkdir(parents=True)
    (tmp_path / "benches/a.py").write_text("1")
    git("add", ".")
    git("commit", "-q", "-m", "first")
    (tmp_path / "benches/results/r.json").write_text("{}")
    assert records.commit(tmp_path) == git("rev-parse", "HEAD")
    (tmp_path / "benches/a.py").write_text("2")
    assert records.commit(tmp_path) == git("rev-parse", "HEAD") + "-changed"


def test_the_table_shows_the_answer_what_stands_beside_it_and_notes() -> None:
    made = record(
        {"a": {"rate_per_s": [3.0, 1.0, 2.0], "peak_bytes": [10, 10, 12]}}, notes=["prompts were cut"]
    )
    text = records.table(made)
    assert text.splitlines()[0] == "how fast is it?"
    assert "a: 2 tok/s (iqr 1, n=3)" in text
    assert "peak_bytes 10" in text
    assert "note: prompts were cut" in text


def test_records_in_the_repository_can_be_read() -> None:
    for path in sorted(records.RESULTS.glob("*/*.json")):
        made = records.read(path)
        assert path.parent.name == made.hardware.slug
        assert path.name.startswith(f"{made.date}-{made.slug}")
        assert made.correct
        for figures in made.subjects.values():
            assert len(figures[made.figure].values) == made.repeats
            for series in figures.values():
                assert series == records.Series.of(series.values)
