"""`octavo simulate` as it is typed: figures, files, the same bytes, and what is said about wrong input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from octavo.cli.main import main

TIMING = {
    "model": {"kind": "linear", "overhead_s": 0.006, "token_s": 2.5e-5, "context_s": 4e-8},
    "host": {"front_s": 0.01},
    "source": "made up for a test",
}
MEMORY = ("--num-kv-blocks", "2000", "--max-model-len", "4096")


@pytest.fixture
def timing(tmp_path: Path) -> str:
    path = tmp_path / "timing.json"
    path.write_text(json.dumps(TIMING))
    return str(path)


def figures(capsys: pytest.CaptureFixture[str], *words: str) -> dict:
    assert main(["simulate", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_figures_and_the_same_again(timing: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = (
        *(
            "--timing",
            timing,
            *MEMORY,
            "--rate",
            "5",
            "--requests",
            "50",
            "--prompt-tokens",
            "lognormal:200:1",
        ),
        *("--output-tokens", "10-60", "--replicas", "2", "--prefixes", "2:64:0.5", "--cancel", "0.1:1s"),
        *(
            "--clients",
            "a=3,b=1",
            "--priorities",
            "0=1,5=1",
            "--slo-ttft",
            "1s",
            "--slo-tpot",
            "50ms",
            "--price",
            "3",
        ),
    )
    found = figures(capsys, *words)
    assert found["requests"]["sent"] == 50
    assert found["ttft_s"]["p50"] > 0.016
    assert found["goodput"]["is_met"]
    assert found["cost"]["usd"] > 0
    assert found["timing"]["source"] == "made up for a test"
    assert figures(capsys, *words) == found
    assert figures(capsys, *words, "--exact") == found
    assert figures(capsys, *words, "--seed", "1") != found


def test_files(timing: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page, trace, each = tmp_path / "page.html", tmp_path / "trace.json", tmp_path / "each.jsonl"
    words = (
        *("--timing", timing, *MEMORY, "--concurrency", "4", "--requests", "20"),
        *("--html", str(page), "--trace-out", str(trace), "--requests-out", str(each)),
    )
    assert main(["simulate", *words]) == 0
    assert "per output token" not in capsys.readouterr().err
    text = page.read_text()
    assert text.count("<svg") == 6
    for elsewhere in ('src="http', 'href="http', "@import", "<script"):
        assert elsewhere not in text
    events = json.loads(trace.read_text())["traceEvents"]
    assert {"X", "C", "M"} <= {event["ph"] for event in events}
    lines = [json.loads(line) for line in each.read_text().splitlines()]
    assert len(lines) == 20
    assert all(line["ttft_s"] <= line["e2e_s"] for line in lines)


def test_a_trace_and_a_baseline(timing: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = tmp_path / "trace.csv"
    rows = "".join(f"{second},{100 + second},{20 + second}\n" for second in range(12))
    trace.write_text("arrival_s,prompt_tokens,output_tokens\n" + rows)
    words = ("--timing", timing, *MEMORY, "--max-num-seqs", "4", "--trace", str(trace))
    ours = figures(capsys, *words)
    static = figures(capsys, *words, "--baseline", "static")
    assert ours["requests"]["answered"] == static["requests"]["answered"] == 12
    assert ours["ttft_s"]["mean"] < static["ttft_s"]["mean"]
    assert figures(capsys, *words, "--speed", "2")["duration_s"] < ours["duration_s"]


def test_a_model_on_a_device_with_all_that_may_happen(capsys: pytest.CaptureFixture[str]) -> None:
    words = (
        "llama-3.1-8b",
        "--device",
        "h100-sxm",
        "--max-model-len",
        "8192",
        "--rate",
        "4",
        "--requests",
        "40",
    )
    found = figures(capsys, *words)
    assert found["requests"]["answered"] == 40
    assert 400_000 < found["limits"]["num_blocks"] * 16 < 500_000
    assert found["cost"]["usd_per_replica_hour"] == 4.5
    failing = figures(capsys, *words, "--replicas", "2", "--fail", "4s:0:3s", "--front", "20ms")
    assert failing["requests"]["answered"] == 40
    assert len(failing["replicas"]) == 3
    assert failing["ttft_s"]["p50"] > found["ttft_s"]["p50"] + 0.019
    apart = figures(capsys, *words, "--decode-replicas", "1", "--transfer", "10GB:2ms")
    assert [one["requests"] for one in apart["replicas"]] == [0, 40]
    scaled = figures(capsys, *words, "--autoscale", "1-3:1:2s")
    assert len(scaled["replicas"]) > 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "or --timing FILE.json, says what a step takes"),
        (("llama-3.1-8b",), "--device NAME is missing"),
        (("llama-3.1-8b", "--device", "h1000"), "device 'h1000' is not known; near it are"),
        (
            ("--timing", "TIMING", *MEMORY, "--rate", "1", "--fail", "9"),
            "--fail should look like 60s:0, got '9'",
        ),
        (
            ("--timing", "TIMING", *MEMORY, "--rate", "1", "--autoscale", "9"),
            "--autoscale should look like 1-8:4:60s",
        ),
        (("--timing", "TIMING", *MEMORY, "--rate", "1", "--decode-replicas", "2"), "--kv-bytes says what"),
        (("--timing", "nowhere.json"), "cannot read the timing file nowhere.json"),
        (("--timing", "TIMING"), "--num-kv-blocks and --max-model-len"),
        (("--timing", "TIMING", *MEMORY), "say what comes"),
        (("--timing", "TIMING", *MEMORY, "--rate", "1", "--concurrency", "2"), "choose one of"),
        (("--timing", "TIMING", *MEMORY, "--rate", "-1"), "rate must be above 0, got -1.0"),
        (
            ("--timing", "TIMING", *MEMORY, "--rate", "1", "--prefixes", "4"),
            "--prefixes should look like 4:1000:0.8",
        ),
        (
            ("--timing", "TIMING", *MEMORY, "--rate", "1", "--priorities", "x=1"),
            "a level is a whole number, got 'x'",
        ),
        (
            ("--timing", "TIMING", *MEMORY, "--rate", "1", "--clients", "a=b"),
            "--clients: 'b' should be a number",
        ),
        (
            ("--timing", "TIMING", *MEMORY, "--rate", "1", "--baseline", "orca"),
            "static, dynamic, contiguous, got 'orca'",
        ),
        (("--timing", "TIMING", *MEMORY, "--trace", "none.csv"), "the trace none.csv cannot be read"),
        (
            ("--timing", "TIMING", *MEMORY, "--rate", "1", "--slo-share", "2"),
            "above 0 and at most 1, got 2.0",
        ),
        (
            ("--timing", "TIMING", *MEMORY, "--rate", "1", "--requests", "5", "--html", "/nowhere/x"),
            "cannot write",
        ),
    ],
)
def test_wrong_input_is_named(
    timing: str, words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["simulate", *(timing if word == "TIMING" else word for word in words)]) == 2
    assert said in capsys.readouterr().err
