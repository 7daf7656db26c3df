"""`octavo batch`: the library's answers with the bundled model; kills, damage and bad files with the fake engine."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from octavo import LLM, SamplingParams
from octavo.cli.main import main
from octavo.server.ledger import Header, Ledger
from tests.server import jobs
from tests.server.conftest import folder as tokenizer_folder

SMALL = ["--num-kv-blocks", "256", "--num-threads", "1", "--max-num-seqs", "8"]
FAKE = [sys.executable, str(Path(__file__).parents[1] / "server" / "batch_fake.py")]
ROOT = Path(__file__).parents[2]

folder = tokenizer_folder


def completion(name: str, prompt: str, **fields) -> dict:
    body = {"prompt": prompt, "temperature": 0, "max_tokens": 6, **fields}
    return {"custom_id": name, "method": "POST", "url": "/v1/completions", "body": body}


def run_fake(folder: Path, source: Path, target: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [*FAKE, str(source), str(target), str(folder), *more]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)


def write(path: Path, lines: list[dict]) -> Path:
    path.write_bytes(jobs.jsonl(lines))
    return path


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_answers_are_the_librarys(tmp_path, capfd):
    prompts = ["import os", "def main", "class A"]
    with LLM(num_kv_blocks=256, num_threads=1, max_num_seqs=8) as llm:
        outs = llm.generate(prompts, SamplingParams(temperature=0.0, max_tokens=6))
    lines = [completion(f"c{n}", prompt) for n, prompt in enumerate(prompts)]
    source = write(tmp_path / "in.jsonl", [*lines, completion("bad", "x", n=0)])
    target = tmp_path / "out.jsonl"
    assert main(["batch", str(source), str(target), "--json", *SMALL]) == 4
    summary = json.loads(capfd.readouterr().out)
    found = read(target)
    assert [line["custom_id"] for line in found] == ["c0", "c1", "c2", "bad"]
    assert [line["response"]["body"]["choices"][0]["text"] for line in found[:3]] == [
        out.outputs[0].text for out in outs
    ]
    assert found[3]["response"]["status_code"] == 400
    assert found[3]["response"]["body"]["error"]["param"] == "n"
    assert (summary["model"], summary["requests"], summary["completed"], summary["failed"]) == (
        "quire",
        4,
        3,
        1,
    )
    assert summary["output_tokens"] == sum(len(out.outputs[0].token_ids) for out in outs)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


def test_killed_and_started_again_it_answers_each_line_once(folder, tmp_path):
    count = 60
    lines = [jobs.chat_line(n, text=f"!slow say:answer {n}") for n in range(count)]
    source, target = write(tmp_path / "in.jsonl", lines), tmp_path / "out.jsonl"
    part = tmp_path / "out.jsonl.part"
    command = [*FAKE, str(source), str(target), str(folder), "--max-num-seqs", "2"]
    for goal in (1, 20, 41):
        process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
        deadline_s = time.monotonic() + 60
        while not part.exists() or part.read_bytes().count(b"\n") <= goal:
            assert process.poll() is None
            assert time.monotonic() < deadline_s
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert not target.exists()
    done = run_fake(folder, source, target, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["resumed"] >= 41
    found = read(target)
    assert Counter(line["custom_id"] for line in found) == Counter(line["custom_id"] for line in lines)
    for n, line in enumerate(found):
        assert line["response"]["body"]["choices"][0]["message"]["content"] == f"answer {n}"
    assert not part.exists()


def test_a_kill_between_the_output_and_the_end_is_mended(folder, tmp_path):
    """Both files are there: the results once more become the output."""
    source, target = write(tmp_path / "in.jsonl", [jobs.chat_line(0)]), tmp_path / "out.jsonl"
    assert run_fake(folder, source, target).returncode == 0
    refused = run_fake(folder, source, target)
    assert refused.returncode == 2
    assert "is there already" in refused.stderr
    target.unlink()
    command = [*FAKE, str(source), str(target), str(folder)]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    part = tmp_path / "out.jsonl.part"
    kept = b""
    while process.poll() is None:
        if part.exists():
            kept = part.read_bytes() or kept
        time.sleep(0.001)
    part.write_bytes(kept)
    target.write_bytes(b"half of")
    assert run_fake(folder, source, target).returncode == 0
    assert [line["custom_id"] for line in read(target)] == ["line-0"]
    assert not part.exists()


def test_ctrl_c_keeps_what_is_answered(folder, tmp_path):
    lines = [jobs.chat_line(n, text=f"!slow say:{'x' * 4 * n}") for n in range(40)]
    source, target = write(tmp_path / "in.jsonl", lines), tmp_path / "out.jsonl"
    part = tmp_path / "out.jsonl.part"
    command = [*FAKE, str(source), str(target), str(folder), "--max-num-seqs", "1"]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # whoever started us may ignore it
    )
    while not part.exists() or part.read_bytes().count(b"\n") <= 3:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, words = process.communicate(timeout=60)
    assert (process.returncode, words.strip().splitlines()[-1]) == (130, "interrupted")
    done = run_fake(folder, source, target)
    assert done.returncode == 0
    assert "before this run" in done.stdout
    assert len(read(target)) == 40


def test_a_bad_file_is_refused_before_the_model_is_loaded(tmp_path):
    lines = [jobs.chat_line(0), jobs.chat_line(0), jobs.chat_line(1, stream=True)]
    source, target = write(tmp_path / "in.jsonl", lines), tmp_path / "out.jsonl"
    done = run_fake(Path("missing"), source, target)
    assert done.returncode == 2
    assert "line 2: custom_id is the same as in line 1" in done.stderr
    assert "line 3: stream" in done.stderr
    as_json = run_fake(Path("missing"), source, target, "--json")
    assert [error["line"] for error in json.loads(as_json.stdout)["errors"]] == [2, 3]
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]
    good = write(tmp_path / "good.jsonl", [jobs.chat_line(0)])
    assert run_fake(Path("missing"), good, target).returncode == 3


@pytest.mark.parametrize("change", ["input", "weights"])
def test_results_of_something_else_are_not_mixed_in(folder, tmp_path, change):
    source, target = write(tmp_path / "in.jsonl", [jobs.chat_line(0)]), tmp_path / "out.jsonl"
    part = tmp_path / "out.jsonl.part"
    if change == "weights":
        digest = hashlib.sha256(source.read_bytes()).hexdigest()
        Ledger(part, Header("octavo batch fp_of_others", digest), 1).close()
    else:
        lines = [jobs.chat_line(n, text=f"!slow say:answer {n}") for n in range(20)]
        other = write(tmp_path / "other.jsonl", lines)
        process = subprocess.Popen(
            [*FAKE, str(other), str(target), str(folder), "--max-num-seqs", "1"], cwd=ROOT
        )
        while not part.exists() or part.read_bytes().count(b"\n") <= 1:
            assert process.poll() is None
            time.sleep(0.01)
        process.kill()
        process.wait()
    before = part.read_bytes()
    done = run_fake(folder, source, target)
    assert done.returncode == 4
    assert "another input or model" in done.stderr
    assert part.read_bytes() == before
    assert not target.exists()


def test_a_model_of_another_name_is_said_before_a_line_runs(folder, tmp_path):
    source = write(tmp_path / "in.jsonl", [jobs.chat_line(0, model="gpt")])
    target = tmp_path / "out.jsonl"
    done = run_fake(folder, source, target)
    assert done.returncode == 2
    assert "'gpt'" in done.stderr
    done = run_fake(folder, source, target, "--served-model-name", "gpt")
    assert done.returncode == 0
    assert "1 of 1 lines answered" in done.stdout
