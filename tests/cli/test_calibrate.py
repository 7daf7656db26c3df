"""`octavo calibrate` as it is typed: the file it writes, that the simulator reads it, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from octavo.cli.calibrate import from_recording, medians
from octavo.cli.fronting import flags_of
from octavo.cli.main import main
from octavo.core.sequence import SamplingParams
from octavo.obs import recording, ring
from octavo.obs.flight import Saved, Section, Served, Submitted, encoded
from octavo.obs.replay import read
from octavo.sim.calibrate import read_timing
from octavo.sim.timing import Work
from tests.engine.tiny import engine, write_checkpoint

SMALL = (
    *("--num-kv-blocks", "129", "--block-size", "8", "--max-num-seqs", "4"),
    *("--max-num-batched-tokens", "64", "--num-threads", "1"),
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def calibrated(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("timing") / "timing.json"
    assert main(["calibrate", str(tiny), "--budget", "1s", "--output", str(path), *SMALL]) == 0
    return path


def test_the_file_says_what_it_is_of(calibrated: Path, tiny: Path) -> None:
    document = json.loads(calibrated.read_text())
    measured = document["measured"]
    assert measured["model"] == tiny.name
    assert measured["precision"] == "float32"
    assert measured["num_threads"] == 1
    assert measured["num_rounds"] >= 3
    assert len(measured["fingerprint"]) == 16
    assert measured["limits"]["max_num_seqs"] == 4
    assert set(measured["errors"]) == {"linear", "blend", "table"}
    assert document["model"]["kind"] in measured["errors"]
    assert measured["because"].startswith(document["model"]["kind"])
    assert measured["num_steps"] > 30


def test_the_simulator_reads_it(calibrated: Path, capsys: pytest.CaptureFixture[str]) -> None:
    timing = read_timing(calibrated)
    assert timing.host.turn_s > 0
    assert timing.model.seconds(Work(num_decodes=1, decode_context=40, num_sampled=1)) > 0
    load = ("--rate", "5", "--requests", "20", "--prompt-tokens", "10-40", "--output-tokens", "4-9")
    assert main(["simulate", "--timing", str(calibrated), *load, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["requests"]["answered"] == 20
    assert "octavo calibrate" in document["timing"]["source"]
    measured = json.loads(calibrated.read_text())["measured"]["limits"]
    assert document["measured_limits"] == {"file": str(calibrated), "names": sorted(measured)}
    assert document["limits"] == {name: measured.get(name) for name in document["limits"]}


def test_what_is_said_goes_before_what_was_measured(
    calibrated: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    load = ("--rate", "5", "--requests", "20", "--prompt-tokens", "10-40", "--output-tokens", "4-9")
    words = ("--num-kv-blocks", "64", "--max-num-seqs", "2")
    assert main(["simulate", "--timing", str(calibrated), *words, *load, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["limits"]["num_blocks"], document["limits"]["max_num_seqs"]) == (64, 2)
    names = document["measured_limits"]["names"]
    assert "max_model_len" in names
    assert not {"num_blocks", "max_num_seqs"} & set(names)
    assert main(["simulate", "--timing", str(calibrated), *load]) == 0
    assert f"as measured, from {calibrated}: block_tokens 8" in capsys.readouterr().out


@pytest.fixture(scope="module")
def recorded(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file as a server saves it: an engine's trail, and what the front knows of the requests."""
    with engine(tiny) as llm:
        for number in range(10):
            prompts = [[(number * 7 + place) % 240 for place in range(9 + 5 * number)], [number, 3, 4, 5]]
            llm.generate(prompts, SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True))
        records = list(ring.records(bytes(llm.built.trail)))
    served = [
        Served(
            entry.request_id,
            (entry.request_id,),
            "",
            "",
            None,
            entry.now_s - 2e-3,
            0,
            0,
            1e9,
            1e9,
            1e9,
            0,
            1,
            1,
            0,
        )
        for entry in read(records)
        if isinstance(entry, Submitted)
    ]
    path = tmp_path_factory.mktemp("recordings") / "one.recording"
    saved = Saved("0.0.1", 0.0, 0.0, "for a test", "tiny", {"dtype": "float32", "num_threads": "1"})
    recording.write(
        path, saved, [(Section("front"), map(encoded, served)), (Section("engine", 0, 0), records)]
    )
    return path


def test_a_recording_is_enough(recorded: Path, tmp_path: Path) -> None:
    path = tmp_path / "timing.json"
    assert main(["calibrate", "--recording", str(recorded), "--output", str(path)]) == 0
    document = json.loads(path.read_text())
    assert document["measured"]["model"] == "tiny"
    assert document["measured"]["recorded_by"] == "0.0.1"
    assert document["measured"]["settings"] == {"dtype": "float32", "num_threads": "1"}
    assert document["host"]["front_s"] == pytest.approx(2e-3)
    assert read_timing(path).host.front_s == pytest.approx(2e-3)


def test_equal_things_have_equal_fingerprints(recorded: Path) -> None:
    assert from_recording(recorded).fingerprint == from_recording(recorded, 0).fingerprint


def test_steps_alike_count_as_one() -> None:
    one, other = Work(num_decodes=1), Work(num_decodes=2)
    assert medians([(one, 3.0), (other, 5.0), (one, 1.0), (one, 2.0)]) == [(one, 2.0), (other, 5.0)]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--recording", "FILE", "--front"), "leave out MODEL, --front and --budget"),
        (("--recording", "FILE", "--engine", "3"), r"has engines [0], not 3"),
        (("--engine", "0"), "say --recording FILE"),
        (("--budget", "0.2s"), "--budget must be from 1s to 1h, got 200 ms"),
        (("--budget", "soon"), "soon"),
        (
            ("--recording", "FILE", "--output", "/no/such/folder/t.json"),
            "cannot write /no/such/folder/t.json",
        ),
    ],
)
def test_what_is_refused(
    recorded: Path, words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["calibrate", *(str(recorded) if word == "FILE" else word for word in words)]) == 2
    assert message in capsys.readouterr().err


def test_what_is_no_recording(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "text"
    path.write_text("hello")
    assert main(["calibrate", "--recording", str(path)]) == 3
    assert "is no recording" in capsys.readouterr().err


def test_settings_go_on_to_the_server() -> None:
    args: Any = SimpleNamespace(
        config="a.toml", knob_num_threads="2", knob_enable_prefix_caching=False, knob_dtype=None
    )
    assert flags_of(args) == ["--config", "a.toml", "--no-enable-prefix-caching", "--num-threads", "2"]


@pytest.mark.slow
def test_the_front_is_measured(tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "timing.json"
    assert main(["calibrate", str(tiny), "--budget", "1s", "--front", "--output", str(path), *SMALL]) == 0
    host = json.loads(path.read_text())["host"]
    assert 0 < host["front_s"] < 1
    assert 0 < host["reply_s"] < 1


def test_a_server_that_does_not_start_is_told(tiny: Path) -> None:
    from octavo.cli.fronting import server
    from octavo.errors import LoadError

    with (
        pytest.raises(LoadError, match=r"the server did not start: .*max_num_seqs"),
        server([str(tiny), "--max-num-seqs", "0"]),
    ):
        pass
