"""Generating from the command line with the bundled model, in this process."""

from __future__ import annotations

import io
import json

import pytest
import torch

from octavo import LLM, SamplingParams
from octavo.cli import generate
from octavo.cli.main import main
from octavo.kernels import native

SMALL = ["--num-kv-blocks", "256", "--num-threads", "1", "--max-num-seqs", "8"]


@pytest.fixture(scope="module")
def texts() -> dict[str, str]:
    """What the library answers, greedy, eight tokens."""
    with LLM(num_kv_blocks=256, num_threads=1, max_num_seqs=8) as llm:
        params = SamplingParams(temperature=0.0, max_tokens=8)
        prompts = ["import os", "def main", "class A"]
        outs = llm.generate(prompts, params)
        found = {prompt: out.outputs[0].text for prompt, out in zip(prompts, outs, strict=True)}
        found["chat"] = llm.chat([{"role": "user", "content": "import os"}], params)[0].outputs[0].text
        return found


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        ([], (None, None)),
        (["What is it?"], (None, "What is it?")),
        (["quire"], ("quire", None)),
        (["auto"], ("auto", None)),
        (["owner/name"], ("owner/name", None)),
        (["/"], ("/", None)),
        (["and/or not"], (None, "and/or not")),
        (["\x00"], (None, "\x00")),
        (["quire", "auto"], ("quire", "auto")),
    ],
)
def test_a_lone_argument_is_a_model_when_it_names_one(arguments, found):
    assert generate.split_arguments(arguments, is_file=False) == found


def test_one_prompt_is_printed_as_it_comes(texts, capsys):
    assert main(["generate", "import os", "--max-tokens", "8", *SMALL]) == 0
    assert capsys.readouterr().out == texts["import os"] + "\n"
    assert main(["generate", "quire", "import os", "--chat", "--max-tokens", "8", *SMALL]) == 0
    assert capsys.readouterr().out == texts["chat"] + "\n"


def test_a_prompt_may_be_piped_and_the_answer_be_json(texts, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("import os"))
    assert main(["generate", "--json", "--max-tokens", "8", "--n", "2", *SMALL]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert [one["text"] for one in answer["outputs"]] == [texts["import os"]] * 2
    assert answer["outputs"][0]["finish_reason"] == "length"
    assert len(answer["outputs"][0]["token_ids"]) == 8
    metrics = answer["metrics"]
    assert metrics["queued_s"] <= metrics["first_token_s"] <= metrics["finished_s"]


def test_a_file_of_prompts(texts, tmp_path, capsys):
    rows = [
        {"prompt": "import os"},
        {"prompt": "def main", "max_tokens": 3},
        {"messages": [{"role": "user", "content": "import os"}]},
        {"prompt_token_ids": [10**7]},
        {"prompt": "x", "messages": []},
        {"prompt": "x", "temperture": 1},
        {"prompt": "x", "temperature": -1},
        {},
        {"prompt": "class A"},
    ]
    (tmp_path / "in.jsonl").write_text("\n\n".join(map(json.dumps, rows)) + "\n")
    files = ["--input", str(tmp_path / "in.jsonl"), "--output", str(tmp_path / "out.jsonl")]
    assert main(["generate", *files, "--max-tokens", "8", *SMALL]) == 4
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["index"] for line in lines] == list(range(9))
    assert [line["outputs"][0]["text"] for line in (lines[0], lines[2], lines[8])] == [
        texts["import os"], texts["chat"], texts["class A"],
    ]  # fmt: skip
    assert len(lines[1]["outputs"][0]["token_ids"]) == 3
    codes = [line["error"]["code"] for line in lines[3:8]]
    assert codes == ["invalid_value"] * 5
    assert lines[6]["error"]["param"] == "temperature"
    assert "temperture" in lines[5]["error"]["message"]
    assert "5 of 9 lines failed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "hint"),
    [('{"prompt": ', "line 1 is not JSON"), ("[]", "line 1 is not an object"), (None, "cannot read")],
)
def test_input_files_that_cannot_be_read(text, hint, tmp_path, capsys):
    path = tmp_path / "in.jsonl"
    if text is not None:
        path.write_text(text)
    assert main(["generate", "--input", str(path), "--output", str(tmp_path / "out")]) == 2
    assert hint in capsys.readouterr().err


def test_an_output_that_cannot_be_written_is_said_first(tmp_path, capsys):
    path = tmp_path / "in.jsonl"
    path.write_text('{"prompt": "x"}\n')
    assert main(["generate", "--input", str(path), "--output", str(tmp_path / "no" / "out")]) == 2
    assert "cannot write" in capsys.readouterr().err


def test_a_chat_in_this_process_keeps_the_conversation(texts, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("import os\n\nimport os\n/reset\nimport os\n/quit\nnever\n"))
    assert main(["chat", "--json", "--max-tokens", "8", *SMALL]) == 0
    first, second, third = map(json.loads, capsys.readouterr().out.splitlines())
    assert first["text"] == third["text"] == texts["chat"]
    assert first["tokens"] == 8
    assert first["tokens_per_s"] > 0
    assert second["tokens"] > 0


def test_a_prompt_that_does_not_fit_is_a_wrong_argument(capsys):
    assert main(["generate", "--max-model-len", "16", "import os\n" * 50, *SMALL]) == 2
    assert "context_length_exceeded" in capsys.readouterr().err


def test_eval_reports_a_share_and_what_was_missed(capsys):
    words = ["eval", "--task", "recall", "--limit", "4", "--num-pairs", "1", "2", "--json", *SMALL]
    assert main(words) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["task"], report["count"]) == ("recall", 8)
    assert report["right"] == sum(group["right"] for group in report["groups"])
    assert len(report["misses"]) == report["count"] - report["right"]


def test_eval_measures_perplexity_the_same_in_any_company(capsys):
    figures = []
    for seqs in ("1", "8"):
        words = ["eval", "--task", "perplexity", "--limit", "1", "--window-tokens", "64", "--json"]
        assert main([*words, "--num-kv-blocks", "256", "--num-threads", "1", "--max-num-seqs", seqs]) == 0
        figures.append(json.loads(capsys.readouterr().out))
    assert figures[0] == figures[1]
    assert 1.0 < figures[0]["perplexity"] < 4096


def test_bench_latency_counts_what_was_asked(capsys):
    words = ["bench", "latency", "--prompt-tokens", "8", "--output-tokens", "4", "--repeats", "2", "--json"]
    assert main([*words, *SMALL]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["num_prompt_tokens"], found["num_output_tokens"], found["batch_size"]) == (8, 4, 1)
    assert len(found["ttft_s"]["values"]) == 2
    words = ["bench", "throughput", "--requests", "3", "--prompt-tokens", "4-8", "--output-tokens", "2"]
    assert main([*words, "--repeats", "1", *SMALL]) == 0
    assert "tok/s" in capsys.readouterr().out


def test_doctor_names_the_kernels_and_finds_a_taken_port(capsys):
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert main(["doctor", "--json", "--port", str(taken.getsockname()[1]), *SMALL]) == 0
    findings = {one["what"]: one for one in json.loads(capsys.readouterr().out)}
    assert findings["port"]["state"] == "warning"
    assert "--port 0" in findings["port"]["fix"]
    assert findings["kernels"]["state"] == "ok"
    assert findings["kernels"]["found"].partition(": ")[0] == (native.instruction_sets() or ("reference",))[0]
    assert findings["model"]["found"] == "quire: llama"
    assert main(["doctor", "/nowhere", "--json", "--port", "0"]) == 4


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
@pytest.mark.parametrize(
    ("quantization", "products"), [("w4a16", {"linear int4", "linear int8"}), ("int8", {"linear"})]
)
def test_doctor_says_what_would_multiply_rounded_weights_on_a_gpu(capsys, quantization, products):
    asked = ["--device", "cuda", "--quantization", quantization, "--dtype", "bfloat16"]
    assert main(["doctor", "--json", "--port", "0", *asked, *SMALL]) == 4
    findings = {one["what"]: one for one in json.loads(capsys.readouterr().out)}
    assert {name for name in findings if "linear" in name} == {f"kernel {name}" for name in products}
    refused = findings.get("quantization", {"state": "ok", "found": ""})
    assert (refused["state"], "w8a16, w4a16, fp8 run without" in refused["found"]) == (
        ("problem", True) if quantization == "int8" else ("ok", False)
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_doctor_says_what_depends_on_the_batch(capsys):
    asked = ["--device", "cuda", "--dtype", "bfloat16", "--no-batch-invariant"]
    assert main(["doctor", "--json", "--port", "0", *asked, *SMALL]) == 4
    findings = {one["what"]: one for one in json.loads(capsys.readouterr().out)}
    assert findings["kernel linear"]["found"] == "library, whose bits depend on the batch"
    said = findings["batch invariance"]
    assert said["state"] == "warning"
    assert said["found"] == "off: a request's tokens depend on what runs beside it, by linear"
    assert "leave out --no-batch-invariant" in said["fix"]
    assert main(["doctor", "--json", "--port", "0", *asked[:-1], *SMALL]) == 4
    findings = {one["what"]: one for one in json.loads(capsys.readouterr().out)}
    assert "library: a row's bits depend on its company" in findings["kernel linear"]["found"]
    assert "batch invariance" not in findings


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_doctor_says_where_that_would_change_nothing(capsys):
    asked = ["--device", "cuda", "--dtype", "bfloat16", "--quantization", "fp8", "--no-batch-invariant"]
    assert main(["doctor", "--json", "--port", "0", *asked, *SMALL]) == 4
    said = {one["what"]: one for one in json.loads(capsys.readouterr().out)}["batch invariance"]
    assert (said["state"], "would change nothing" in said["found"]) == ("problem", True)
    assert main(["doctor", "--json", "--port", "0", "--no-batch-invariant", *SMALL]) == 4
    model = {one["what"]: one for one in json.loads(capsys.readouterr().out)}["model"]
    assert (model["state"], "batch_invariant=False would change nothing" in model["found"]) == (
        "problem",
        True,
    )


def test_doctor_names_every_op_of_the_reference(capsys):
    assert main(["doctor", "--json", "--port", "0", "--kernels", "reference", *SMALL]) == 0
    findings = {one["what"]: one for one in json.loads(capsys.readouterr().out)}
    assert findings["kernel paged_attention"]["state"] == findings["kernel linear"]["state"] == "ok"
    assert "kernels" not in findings
