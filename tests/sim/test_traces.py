"""Traces in their published columns, ours, and what is said about bad ones."""

from __future__ import annotations

import gzip
import json
import statistics
from itertools import pairwise
from pathlib import Path

import pytest

from octavo.errors import ConfigError
from octavo.sim.traces import Replay, Row, Trace, read_lengths, read_trace
from tests.shared_data import shared


def written(folder: Path, text: str, name: str = "trace.csv") -> Path:
    path = folder / name
    if name.endswith(".gz"):
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return path


def test_azure(tmp_path: Path) -> None:
    text = (
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:15:50.9951690,396,109\n2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:16:00,7,0\n"
    )
    trace = read_trace(written(tmp_path, text))
    assert (trace.kind, trace.num_without_output) == ("azure", 1)
    assert [(row.prompt_tokens, row.output_tokens) for row in trace.rows] == [(374, 44), (396, 109)]
    assert trace.rows[1].arrival_s == pytest.approx(4.314579, abs=1e-6)


def test_burstgpt(tmp_path: Path) -> None:
    text = (
        "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
        "5,ChatGPT,472,18,490,Conversation log\n45,GPT-4,1087,230,1317,API log\n118,ChatGPT,417,0,417,API log\n"
    )
    trace = read_trace(written(tmp_path, text))
    assert trace.kind == "burstgpt"
    assert [(row.arrival_s, row.prompt_tokens, row.output_tokens) for row in trace.rows] == [
        (0, 472, 18),
        (40, 1087, 230),
    ]


def test_mooncake_blocks_are_shared(tmp_path: Path) -> None:
    rows = [
        {"timestamp": 0, "input_length": 1100, "output_length": 5, "hash_ids": [0, 1, 2]},
        {"timestamp": 2500, "input_length": 1030, "output_length": 6, "hash_ids": [0, 1, 3]},
        {"timestamp": 2500, "input_length": 512, "output_length": 6, "hash_ids": [7]},
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    trace = read_trace(written(tmp_path, text, "trace.jsonl.gz"))
    assert trace.kind == "mooncake"
    assert [row.arrival_s for row in trace.rows] == [0, 2.5, 2.5]
    first, second, third = (job.tokens() for job in Replay(trace).arrivals())
    assert [len(one) for one in (first, second, third)] == [1100, 1030, 512]
    assert first[:1024] == second[:1024]
    assert not set(first[1024:]) & set(second[1024:])
    assert not set(third) & {*first, *second}


@pytest.mark.parametrize("name", ["own.csv", "own.jsonl"])
def test_our_own(tmp_path: Path, name: str) -> None:
    fields = {
        "arrival_s": 1.5, "prompt_tokens": 40, "output_tokens": 3, "prefix": ["sys", "b"], "client": "acme",
        "priority": 2, "cancel_after_s": 0.5,
    }  # fmt: skip
    if name.endswith("csv"):
        text = ",".join(fields) + "\n1.5,40,3,sys b,acme,2,0.5\n2.5,40,3,,,,\n"
    else:
        text = (
            json.dumps(fields)
            + "\n\n"
            + json.dumps({**fields, "arrival_s": 2.5, "prefix": [], "client": ""})
            + "\n"
        )
    first, second = read_trace(written(tmp_path, text, name)).rows
    assert first == Row(
        arrival_s=0.0,
        prompt_tokens=40,
        output_tokens=3,
        blocks=("sys", "b"),
        client="acme",
        priority=2,
        cancel_after_s=0.5,
    )
    assert (second.arrival_s, second.blocks, second.client) == (1.0, (), "")


def test_a_replay_may_be_faster_and_shorter() -> None:
    rows = tuple(Row(arrival_s=float(n), prompt_tokens=5, output_tokens=2) for n in range(10))
    jobs = list(Replay(Trace("plain", rows), speed=4, num_requests=3).arrivals())
    assert [job.at_ns for job in jobs] == [0, 250_000_000, 500_000_000]
    assert not Replay(Trace("plain", rows)).shares
    with pytest.raises(ConfigError, match="speed of a replay must be above 0, got 0"):
        Replay(Trace("plain", rows), speed=0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("a,b\n1,2\n", "line 1: the columns ['a', 'b'] are of no known trace"),
        (
            "arrival_s,prompt_tokens,output_tokens\n1,x,3\n",
            "line 2: prompt_tokens is 'x'; it should be a whole number",
        ),
        (
            "arrival_s,prompt_tokens,output_tokens\n1,2,3\n-1,2,3\n",
            "line 3: arrival_s is '-1'; it should be a number",
        ),
        (
            "arrival_s,prompt_tokens,output_tokens\n1,0,3\n",
            "line 2: prompt_tokens is 0; it should be at least 1",
        ),
        ("arrival_s,prompt_tokens,output_tokens\n1,,3\n", "line 2: prompt_tokens is missing"),
        ("arrival_s,prompt_tokens,output_tokens\n1,2,0\n", "holds no request with an output"),
        (
            "TIMESTAMP,ContextTokens,GeneratedTokens\nnoon,2,3\n",
            "line 2: TIMESTAMP is 'noon'; it should be a time",
        ),
        ('{"arrival_s": 1, "prompt_tokens": 2}\n', "line 1: output_tokens is missing"),
        ('{"arrival_s": 1,\n', "line 1: this is no JSON"),
        (
            '{"arrival_s": 1, "prompt_tokens": 2, "output_tokens": 3}\n[1]\n',
            "line 2: each line should be a JSON object",
        ),
        (
            '{"arrival_s": 1, "prompt_tokens": 2, "output_tokens": 3, "prefix": 7}\n',
            "prefix is 7; it should be a list",
        ),
        (
            '{"timestamp": 0, "input_length": 2.5, "output_length": 3, "hash_ids": []}\n',
            "input_length is 2.5",
        ),
    ],
)
def test_bad_traces_are_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_trace(written(tmp_path, text))
    assert message in str(caught.value)


def test_what_is_no_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="is not text in UTF-8"):
        read_trace(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_trace(tmp_path / "none.csv")
    broken = tmp_path / "trace.csv.gz"
    broken.write_bytes(gzip.compress(b"arrival_s,prompt_tokens,output_tokens\n1,2,3\n")[:-12])
    with pytest.raises(ConfigError, match="cannot be read"):
        read_trace(broken)


def test_the_azure_hour_is_what_it_is_known_to_be() -> None:
    """Azure/AzurePublicDataset, conversation trace of 2023: 5.53 req/s, 1154.7 in, 211.1 out, gaps' variation 1.09."""
    trace = read_trace(shared("traces/azure_llm_2023_conv.csv"))
    assert len(trace.rows) == 19366
    assert trace.rate_per_s == pytest.approx(5.53, abs=0.005)
    assert statistics.mean(row.prompt_tokens for row in trace.rows) == pytest.approx(1154.7, abs=0.05)
    assert statistics.mean(row.output_tokens for row in trace.rows) == pytest.approx(211.1, abs=0.05)
    gaps = [after.arrival_s - before.arrival_s for before, after in pairwise(trace.rows)]
    assert statistics.pstdev(gaps) / statistics.mean(gaps) == pytest.approx(1.09, abs=0.005)


@pytest.mark.parametrize(("name", "share"), [("conversation", 0.374), ("synthetic", 0.651)])
def test_mooncake_hits_of_an_endless_cache(name: str, share: float) -> None:
    """kvcache-ai/Mooncake: tokens of blocks that came before."""
    trace = read_trace(shared(f"traces/mooncake_{name}.jsonl.gz"))
    seen: set[int | str] = set()
    hit = total = 0
    for row in trace.rows:
        total += row.prompt_tokens
        known = 0
        for block in row.blocks:
            if block not in seen:
                break
            known += 512
        hit += min(known, row.prompt_tokens)
        seen.update(row.blocks)
    assert hit / total == pytest.approx(share, abs=0.005)


def test_lengths_of_a_trace() -> None:
    prompts, outputs = read_lengths(shared("traces/arxiv_summarization_lengths.csv.gz"))
    assert len(prompts) == len(outputs) == 28257
    assert (prompts[0], outputs[0]) == (3772, 54)
