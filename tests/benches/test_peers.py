"""The peers bench without any peer: commands, what drivers write and what is made of it, ratios, failures."""

from __future__ import annotations

import ast
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benches.peers import environments, models, process, report
from benches.peers import rounds as peer_rounds
from benches.peers.drivers import common, llama_server
from benches.peers.drivers.common import Answer, Job, Progress, Task, Workload, how_it_ended
from benches.peers.environments import ENVIRONMENTS, cpu_only
from benches.peers.folders import tensor_shapes
from benches.peers.process import Outcome, Plan, nameless
from benches.peers.rounds import Session, rounds, scaled
from benches.peers.subjects import MODELS, OURS, PRECISIONS, ROOT, SUBJECTS, Subject, chosen
from benches.peers.vllm_weights import int4, int8
from benches.record import read, write
from benches.serving.workloads import CONFIGS
from benches.workloads import Shape, shape
from octavo.arch import Arch
from tests.benches.made import LIMITS

DRIVERS = Path(common.__file__).parent
ARCH = Arch.from_file(CONFIGS / "qwen3-0.6b.json")
W1, W3 = shape("W1"), shape("W3")


def plan(*shapes: Shape) -> Plan:
    return Plan(model="qwen3-0.6b", arch=ARCH, shapes=shapes or (W1,), num_threads=2)


def subject(name: str, precision: str) -> Subject:
    (one,) = [one for one in SUBJECTS if (one.name, one.precision) == (name, precision)]
    return one


def line(workload: str, **changes: Any) -> dict[str, Any]:
    made = {
        "event": "done",
        "workload": workload,
        "first_s": [2.0],
        "finished_s": [4.0],
        "prompt_tokens": [128],
        "output_tokens": [21],
        "first_tokens": [7],
        "peak_bytes": 1000,
    }
    return {**made, **changes}


# Subjects


def test_every_precision_has_octavo_and_every_peer_a_driver() -> None:
    for precision in PRECISIONS:
        here = chosen([precision])
        assert here[0].name == OURS
        assert {one.peer for one in here} >= {OURS, "llama.cpp", "openvino", "vllm"}
    assert len({(one.name, one.precision) for one in SUBJECTS}) == len(SUBJECTS)
    for one in SUBJECTS:
        assert (DRIVERS / f"{one.driver}.py").is_file(), one.driver
        assert one.peer == OURS or one.peer in {environment.name for environment in ENVIRONMENTS}


def test_every_form_a_subject_reads_is_made() -> None:
    made = {str(target.relative_to(MODELS / "qwen3-0.6b")) for target, _ in models.forms("qwen3-0.6b")}
    assert {one.form for one in SUBJECTS} <= made


@pytest.mark.parametrize("script", [models, environments])
def test_unknown_names_are_refused_before_anything_is_made(script: Any, capsys: Any) -> None:
    with pytest.raises(SystemExit):
        script.main(["--model"])
    with pytest.raises(SystemExit):
        script.main(["nobody"])
    assert "is called nobody; there are" in capsys.readouterr().err


def test_subjects_are_chosen_by_name_and_precision() -> None:
    assert [one.name for one in chosen(["int8"], "^octavo|q8")] == ["octavo", "llama.cpp-q8_0"]
    assert [one.precision for one in chosen(PRECISIONS, "octavo int")] == ["int8", "int4"]
    with pytest.raises(ValueError, match="no precision 'fp8'"):
        chosen(["fp8"])
    with pytest.raises(ValueError, match="no subject of int8 matches 'nobody'"):
        chosen(["int8"], "nobody")


def test_commands_run_the_driver_with_the_peers_python() -> None:
    task, events = Path("task.json"), Path("events.jsonl")
    ours, theirs = subject(OURS, "int8"), subject("vllm-bf16", "bf16")
    assert ours.command(task, events) == [
        sys.executable, "-m", "benches.peers.drivers.octavo_llm", "task.json", "events.jsonl",
    ]  # fmt: skip
    assert theirs.command(task, events)[0].endswith(".peers/vllm/bin/python")
    variables = theirs.variables(kv_gib=3)
    assert variables["VLLM_CPU_KVCACHE_SPACE"] == "3"
    assert variables["LD_PRELOAD"].endswith(".peers/vllm/lib/libiomp5.so")
    assert ours.variables(3).get("LD_PRELOAD") == os.environ.get("LD_PRELOAD")


def test_only_our_own_driver_imports_octavo() -> None:
    for path in DRIVERS.glob("*.py"):
        if path.stem == "octavo_llm":
            continue
        names = [
            name
            for node in ast.walk(ast.parse(path.read_text()))
            for name in (
                [alias.name for alias in node.names] if isinstance(node, ast.Import)
                else [node.module or ""] if isinstance(node, ast.ImportFrom)
                else []
            )
        ]  # fmt: skip
        ours = [name for name in names if name.split(".")[0] in ("octavo", "benches")]
        assert set(ours) <= {"benches.peers.drivers.common"}, path.name


def test_a_server_is_sized_for_its_workloads() -> None:
    task = Task("m.gguf", 2, 32, 4096, 1, 0.0, [], {"server": "llama-server", "flags": ["-x"]})
    jobs = [Job([1] * 500, 13)] * 32
    one = Workload("W3", jobs[:2], jobs)
    words = llama_server.command(task, [one], 8123)
    assert words[:3] == ["llama-server", "-m", "m.gguf"]
    assert words[words.index("-np") + 1] == "32"
    assert words[words.index("-c") + 1] == str(32 * 768)  # 513 tokens are three pages of 256
    assert words[words.index("--host") + 1] == "127.0.0.1"
    assert words[-1] == "-x"
    assert llama_server.slots(replace(one, shared_tokens=64)) == llama_server.SLOTS_OF_A_COMMON_PREFIX


def test_a_missing_peer_or_model_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benches.peers.subjects.PEERS", tmp_path)
    monkeypatch.setattr("benches.peers.subjects.MODELS", tmp_path / "models")
    assert subject(OURS, "int8").missing("m") == "no model m/hf; make bench-peers converts it"
    peer = subject("llama.cpp-q8_0", "int8")
    assert peer.missing("m") == "no environment llama.cpp; make bench-peers sets it up"
    (tmp_path / "llama.cpp" / "bin").mkdir(parents=True)
    (tmp_path / "llama.cpp" / "bin" / "python").touch()
    assert peer.missing("m") == "llama-server is not built; make bench-peers builds it"
    outcome = process.run(plan(), peer, [W1], 0, 1.0)
    assert outcome.reason == "llama-server is not built; make bench-peers builds it"
    assert outcome.figures == {}


# What drivers are given and what they say


def test_tasks_hold_the_same_prompts_for_everyone_and_survive_the_file(tmp_path: Path) -> None:
    ours, theirs = (
        plan(W1, W3).task(one, [W1, W3], 4, 1.0)
        for one in (subject(OURS, "bf16"), subject("vllm-w4", "int4"))
    )
    assert ours.workloads == theirs.workloads
    assert ours.workloads != plan(W1, W3).task(subject(OURS, "bf16"), [W1, W3], 5, 1.0).workloads
    assert [job.prompt for job in ours.workloads[1].jobs] == [list(job.prompt) for job in W3.jobs(151936, 4)]
    assert not {tuple(job.prompt) for job in ours.workloads[0].warmup} & {
        tuple(job.prompt) for job in ours.workloads[0].jobs
    }
    assert ours.num_kv_tokens >= W3.num_prompt_tokens + W3.num_output_tokens
    assert ours.kv_gib == 2  # 28 layers x 8 heads x 128 x keys and values x 2 bytes, for some 12,000 tokens
    ours.write(tmp_path / "task.json")
    assert Task.read(tmp_path / "task.json") == ours


def test_progress_keeps_first_and_last_times_and_counts() -> None:
    progress = Progress([Job([1], 2), Job([1], 1)])
    progress.add(0, [])
    progress.add(1, [5])
    progress.add(0, [6])
    with pytest.raises(RuntimeError, match="1 tokens came, 2 were asked for"):
        progress.answers()
    progress.add(0, [7])
    first, second = progress.answers()
    assert (first.first_token, first.num_tokens, second.first_token) == (6, 2, 5)
    assert second.first_s == second.finished_s <= first.first_s < first.finished_s


class Echo(common.InProcess):
    """Answers at once with the last token of the prompt; fails at a workload of three jobs."""

    def __init__(self, _task: Task, _workloads: Sequence[Workload]) -> None:
        pass

    def run(self, jobs: Sequence[Job]) -> list[Answer]:
        if len(jobs) == 3:
            raise MemoryError("no room")
        now = time.monotonic()
        return [Answer(now, now + 1.0, job.num_output_tokens, job.prompt[-1]) for job in jobs]


def test_a_driver_says_what_it_finished_before_it_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = Job([1, 9], 4)
    workloads = [Workload("W1", [job], [job]), Workload("W3", [job], [job] * 3)]
    Task("m", 2, 32, 64, 1, time.time(), workloads).write(tmp_path / "task")
    monkeypatch.setattr(sys, "argv", ["driver", str(tmp_path / "task"), str(tmp_path / "events")])
    monkeypatch.setattr(common, "forget_peak", lambda _pid: None)
    with pytest.raises(MemoryError):
        common.drive(Echo)
    lines = [json.loads(text) for text in (tmp_path / "events").read_text().splitlines()]
    outcome = process.read(lines, "ended with exit code 1")
    assert outcome.reason == "MemoryError: no room"
    assert list(outcome.figures) == ["W1"]
    assert outcome.first_tokens == {"W1": [9]}
    assert outcome.figures["W1"]["peak_bytes"] > 0


def test_figures_by_hand() -> None:
    assert process.figures(line("W1"))["decode_tokens_per_s"] == pytest.approx(20 / 2.0)
    assert process.figures(line("W2", output_tokens=[1]))["prompt_tokens_per_s"] == pytest.approx(128 / 2.0)
    several = line(
        "W3", first_s=[1.0, 3.0], finished_s=[4.0, 8.0], output_tokens=[30, 50], prompt_tokens=[5, 6]
    )
    figures = process.figures(several)
    assert figures["output_tokens_per_s"] == pytest.approx(10.0)
    assert (figures["ttft_s"], figures["wall_s"], figures["peak_bytes"]) == (2.0, 8.0, 1000)


def test_the_first_server_tells_the_time_to_ready() -> None:
    lines = [
        {"event": "ready", "ready_s": 3.0}, line("W1"), {"event": "ready", "ready_s": 9.0}, line("W3"),
    ]  # fmt: skip
    outcome = process.read(lines, None)
    assert [one["ready_s"] for one in outcome.figures.values()] == [3.0, 3.0]
    assert outcome.reason is None


def test_reasons_name_no_folders() -> None:
    assert nameless("OSError: no /some/where/deep/model.bin\nmore") == "OSError: no model.bin"
    assert nameless("  ") == "no reason was given"
    assert len(nameless("x" * 999)) == process.REASON_CHARS
    assert how_it_ended(-4) == "died of SIGILL"
    assert how_it_ended(3) == "ended with exit code 3"


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("import time; time.sleep(60)", "not done within 0.2 s"),
        ("raise SystemExit(3)", "ended with exit code 3"),
    ],
)
def test_a_process_that_hangs_or_dies_is_a_reason(
    script: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Subject, "missing", lambda *_: None)
    monkeypatch.setattr(Subject, "command", lambda *_: [sys.executable, "-c", script])
    timeout_s = 0.2 if "sleep" in script else 60.0
    outcome = process.run(plan(), subject(OURS, "bf16"), [W1], 0, timeout_s, tmp_path / "log")
    assert (outcome.reason, outcome.figures) == (reason, {})


def test_a_start_waits_for_a_quiet_machine_but_not_forever() -> None:
    loads = iter([1.5, 0.4, 0.1, 2.0])
    process.wait_for_quiet(60.0, lambda: next(loads))
    assert next(loads) == 2.0
    process.wait_for_quiet(60.0, lambda: None)
    process.wait_for_quiet(0.01, lambda: 1.0)


# Rounds


def test_scale_keeps_lengths_where_there_are_several_requests() -> None:
    assert scaled(W1, 1.0) is W1
    assert scaled(W1, 0.25).sizes == ((128, 32),)
    assert scaled(shape("W2"), 0.25).sizes == ((512, 1),)
    smaller = scaled(W3, 0.25)
    assert smaller.sizes == W3.sizes[:8]
    assert smaller.notes == ("shortened by --scale 0.25: 8 of 32 requests",)
    assert scaled(shape("W4"), 0.01).sizes == ((1056, 32),)
    with pytest.raises(ValueError, match="scale must be above 0 and at most 1, got 2"):
        scaled(W1, 2.0)


def outcome(rate: float, *workloads: str, token: int = 7, reason: str | None = None) -> Outcome:
    figures = {
        name: {process.FIGURES.get(name, process.THROUGHPUT): rate, "ttft_s": 1.0, "wall_s": 2.0,
               "peak_bytes": 2.0**30, "ready_s": 3.0}
        for name in workloads
    }  # fmt: skip
    return Outcome(figures, {name: [token] for name in workloads}, reason, 0.1)


def made_session(
    count: int, asked: Sequence[Shape]
) -> tuple[Session, list[Subject], list[tuple[int, str, str]]]:
    """Three subjects in bf16: octavo at 10, llama.cpp at 20 until W3 kills it, transformers missing."""
    calls = []
    subjects = [subject(name, "bf16") for name in (OURS, "llama.cpp-bf16", "transformers-bf16")]

    def ask(one: Subject, shapes: Sequence[Shape], number: int) -> Outcome:
        names = [shape.id for shape in shapes]
        calls.append((number, one.name, ",".join(names)))
        if one.name == OURS:
            return outcome(10.0 + number, *names)
        if one.peer == "llama.cpp":
            return outcome(20.0, "W1", token=8, reason="died of SIGILL" if "W3" in names else None)
        return Outcome(reason="no environment")

    session = rounds(subjects, asked, count, ask, lambda: LIMITS, lambda **_: None)
    return session, subjects, calls


def test_rounds_rotate_and_do_not_ask_again_what_failed() -> None:
    session, _, calls = made_session(3, [W1, W3])
    assert calls == [
        (0, OURS, "W1,W3"), (0, "llama.cpp-bf16", "W1,W3"), (0, "transformers-bf16", "W1"),
        (1, "llama.cpp-bf16", "W1"), (1, OURS, "W1,W3"),
        (2, OURS, "W1,W3"), (2, "llama.cpp-bf16", "W1"),
    ]  # fmt: skip
    assert len(session.limits) == 3
    assert session.failures == {
        ("llama.cpp-bf16", "bf16", "W3"): "died of SIGILL",
        ("transformers-bf16", "bf16", "W1"): "no environment",
        ("transformers-bf16", "bf16", "W3"): "asked only W1 and W2",
    }


def test_records_hold_figures_reasons_and_ratios(tmp_path: Path) -> None:
    session, subjects, _ = made_session(3, [W1, W3])
    first, second = report.records_of(session, plan(W1, W3), subjects, "python -m benches.peers.rounds")
    assert list(first.subjects) == [OURS, "llama.cpp-bf16"]
    assert first.subjects[OURS]["decode_tokens_per_s"].values == (10.0, 11.0, 12.0)
    assert first.subjects[OURS]["ready_s"].median == 3.0
    assert first.slug == "peers-w1-qwen3-0.6b-bf16"
    assert "transformers-bf16: unavailable: no environment" in first.notes
    assert "llama.cpp-bf16: 0 of 3 answers begin with octavo's first token" in first.notes
    best, times = report.ratio(first)
    assert (best, times) == ("llama.cpp-bf16", 11 / 20)
    assert list(second.subjects) == [OURS]
    assert "llama.cpp-bf16: unavailable: died of SIGILL" in second.notes
    assert report.ratio(second) == ("-", None)
    assert "together and alone" in first.gate
    assert read(write(first, tmp_path)) == first
    head, *rows = report.table([first, second]).splitlines()
    assert head.startswith("workload  precision  octavo")
    assert "0.55" in rows[0]
    assert "10" not in rows[1].split("tok/s")[1], "no figure is invented for a peer that gave none"


def test_a_session_is_read_back_from_its_log(tmp_path: Path) -> None:
    lines: list[dict[str, Any]] = [{"limits": asdict(LIMITS)}]
    for one in (outcome(10.0, "W1", "W3"), outcome(20.0, "W1", reason="died of SIGILL")):
        lines.append({"subject": OURS, "precision": "bf16", **asdict(one)})
    lines.append(
        {"subject": "transformers-bf16", "precision": "bf16", **asdict(Outcome(reason="no environment"))}
    )
    lines.append({"subject": OURS, "precision": "int8", **asdict(Outcome(reason="of another subject"))})
    text = [json.dumps({"model": "qwen3-0.6b", "round": 0, **line}) for line in lines]
    text.append(json.dumps({"model": "llama-3.2-1b", "round": 0, "limits": None}))
    (tmp_path / "log").write_text("\n".join(text))
    subjects = [subject(OURS, "bf16"), subject("transformers-bf16", "bf16")]
    session = peer_rounds.from_log(tmp_path / "log", plan(W1, W3), subjects)
    assert session.limits == [LIMITS]
    assert [sorted(one.figures) for one in session.outcomes[(OURS, "bf16")]] == [["W1", "W3"], ["W1"]]
    assert session.failures == {
        (OURS, "bf16", "W3"): "died of SIGILL",
        ("transformers-bf16", "bf16", "W1"): "no environment",
        ("transformers-bf16", "bf16", "W3"): "asked only W1 and W2",
    }


def test_a_question_nobody_answered_is_told() -> None:
    session, subjects, _ = made_session(2, [W1, W3])
    peers = subjects[1:]
    (made,) = report.records_of(session, plan(W1, W3), peers, "")
    assert "together and alone" not in made.gate
    assert report.unanswered(session, plan(W1, W3), peers) == [
        "W3 bf16: no record: llama.cpp-bf16: unavailable: died of SIGILL;"
        " transformers-bf16: unavailable: asked only W1 and W2"
    ]
    session.failures[(OURS, "bf16", "W1")] = "not done within 5 s"
    assert report.unavailable(session, subjects, "W1")[0] == (
        "octavo: unavailable after 2 rounds: not done within 5 s"
    )


def test_limits_are_the_medians_of_the_rounds() -> None:
    slow, fast = (replace(LIMITS, read_bytes_per_s=rate) for rate in (1e10, 3e10))
    found = report.median_limits([slow, fast, LIMITS])
    assert (found.read_bytes_per_s, found.int8_op_per_s) == (2e10, None)


def test_a_whole_session_leaves_log_records_and_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def answers(_plan: Plan, one: Subject, shapes: Sequence[Shape], *_: Any) -> Outcome:
        return outcome(30.0 if one.name == OURS else 20.0, *(shape.id for shape in shapes))

    monkeypatch.setattr(peer_rounds, "run", answers)
    monkeypatch.setattr(peer_rounds, "wait_for_quiet", lambda _: None)
    monkeypatch.setattr(peer_rounds, "measure_machine", lambda _: LIMITS)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    folder = str(tmp_path / "results")
    words = ["--workloads", "W1,W3", "--precisions", "int4", "--rounds", "2", "--scale", "0.5"]
    assert peer_rounds.main([*words, "--log", str(tmp_path / "log.jsonl"), "--results", folder]) == 0
    lines = [json.loads(text) for text in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert len(lines) == 2 * (1 + len(chosen(["int4"])))
    found = [read(path) for path in sorted((tmp_path / "results").rglob("*.json"))]
    assert [one.shape["workload"] for one in found] == ["W1", "W3"]
    assert "shortened by --scale 0.5: 16 of 32 requests" in found[1].notes
    assert str(tmp_path) not in found[0].command
    assert capsys.readouterr().out.splitlines()[-1].split()[:3] == ["W3", "int4", "30"]
    monkeypatch.delattr(peer_rounds, "run")  # nothing is measured again
    log = str(tmp_path / "log.jsonl")
    for form in (["--from-log", log], [f"--from-log={log}"]):
        again = tmp_path / f"again {len(form)}"
        assert peer_rounds.main([*words, *form, "--results", str(again)]) == 0
        remade = [read(path) for path in sorted(again.rglob("*.json"))]
        assert [one.subjects for one in remade] == [one.subjects for one in found]
        assert [one.notes for one in remade] == [one.notes for one in found]
        assert "--from-log" not in remade[0].command
        assert "log.jsonl" not in remade[0].command


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (None, "No such file"),
        ("", "no round of qwen3-0.6b in it"),
        ("{", "line 1 is not one that a session wrote"),
        ('{"model": "qwen3-0.6b", "round": 0}', "line 1 is not one that a session wrote"),
    ],
)
def test_a_log_that_holds_no_session_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str | None, told: str
) -> None:
    if text is not None:
        (tmp_path / "log").write_text(text)
    assert peer_rounds.main(["--from-log", str(tmp_path / "log")]) == 2
    assert told in capsys.readouterr().err


def test_bad_arguments_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert peer_rounds.main(["--workloads", "W9"]) == 2
    assert peer_rounds.main(["--scale", "0"]) == 2
    assert peer_rounds.main(["--only", "nobody"]) == 2
    told = capsys.readouterr().err
    assert "no workload 'W9'" in told
    assert "scale must be" in told
    assert "matches 'nobody'" in told


# Environments and models


def test_requirements_for_gpus_and_extras_are_left_out() -> None:
    lines = [
        "torch==2.13.0",
        "numpy",
        'ray; extra == "ray"',
        "nvidia-nccl-cu12",
        "flashinfer-python==1",
        "",
        "regex",
    ]
    assert cpu_only(lines) == ["numpy", "regex"]


@pytest.mark.parametrize("name", ["qwen3-0.6b", "llama-3.2-1b"])
def test_folders_hold_all_parameters(name: str) -> None:
    config = json.loads((CONFIGS / f"{name}.json").read_text())
    total = sum(torch.Size(size).numel() for _, size in tensor_shapes(config))
    assert total == Arch.from_file(CONFIGS / f"{name}.json").num_parameters()


def test_a_form_that_breaks_off_is_not_taken_for_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "MODELS", tmp_path)
    target = tmp_path / "m" / "gguf" / "bf16.gguf"

    def breaks(path: Path) -> None:
        path.write_text("half")
        raise OSError("disk full")

    def whole(path: Path) -> None:
        path.write_text("whole")

    with pytest.raises(OSError, match="disk full"):
        models.write(target, breaks)
    assert not target.exists()
    models.write(target, whole)
    models.write(target, breaks)
    assert target.read_text() == "whole"


def test_vllm_weights_are_within_half_a_step() -> None:
    weight = torch.randn(6, 256, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    found = int8("w.weight", weight)
    scale = found["w.weight_scale"].float()
    bf16_slack = 127 * scale * 2.0**-8  # the scale itself is rounded to bf16
    assert torch.all((found["w.weight"] * scale - weight.float()).abs() <= scale / 2 + bf16_slack)
    found = int4("w.weight", weight)
    words = found["w.weight_packed"]
    nibbles = torch.stack([(words >> (4 * place)) & 15 for place in range(8)], 2).view(6, 2, 128) - 8
    scale = found["w.weight_scale"].float()[:, :, None]
    error = (nibbles * scale).view(6, 256) - weight.float()
    assert torch.all(error.abs().view(6, 2, 128) <= scale / 2 + 7 * scale * 2.0**-8)
    assert found["w.weight_shape"].tolist() == [6, 256]


def test_no_file_of_the_bench_names_a_host_or_a_folder_of_ours() -> None:
    for path in (ROOT / "benches" / "peers").rglob("*.py"):
        text = path.read_text()
        assert "://" not in text, path.name
        assert str(ROOT) not in text, path.name
