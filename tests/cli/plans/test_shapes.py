"""`octavo plan memory`, `flops`, `comm` and `block` of any shape, as a user types them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from octavo.arch import known
from octavo.cli import main as cli
from octavo.units import GIB


def told(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert cli.main(["plan", *words]) == 0
    return capsys.readouterr().out


def found(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    made: dict[str, Any] = json.loads(told(capsys, *words, "--json"))
    return made


def test_a_known_shape_needs_no_network(capsys: pytest.CaptureFixture[str]) -> None:
    plan = found(capsys, "memory", "llama-3-8b")
    assert plan["parameters"] == 8_030_261_248
    assert plan["weights"]["bf16"]["bytes"] == 2 * 8_030_261_248
    assert plan["kv"]["bf16"] | {"source": ""} == {
        "token_bytes": 131_072, "sequence_bytes": 4096 * 131_072, "state_bytes": 0, "source": "",
    }  # fmt: skip
    assert sum(plan["parameters_by_part"].values()) == plan["parameters"]
    assert "mxfp4" not in plan["weights"]
    text = told(capsys, "memory", "llama-3-8b")
    assert "8,030,261,248 parameters" in text
    assert "int4-g128" in text


def test_a_device_has_room_for_so_many(capsys: pytest.CaptureFixture[str]) -> None:
    words = (
        "memory",
        "llama-3-70b",
        "--device",
        "h100",
        "--tensor-parallel",
        "4",
        "--weights",
        "fp8",
        "--kv",
        "fp8",
    )
    plan = found(capsys, *words)["plan"]
    assert (plan["device"], plan["weights"], plan["kv"]) == ("h100-sxm", "fp8", "fp8")
    assert plan["pool_tokens"] == plan["pool_bytes"] // (16 * 327_680 // 8) * 16
    assert sum(row["bytes"] for row in plan["rows"]) == plan["limit_bytes"]
    chosen = [one for one in plan["alternatives"] if (one["weights"], one["kv"]) == ("fp8", "fp8")]
    assert chosen[0]["sequences"] == plan["sequences"]
    assert "room for" in told(capsys, *words)


def test_what_does_not_fit_says_by_how_much(capsys: pytest.CaptureFixture[str]) -> None:
    assert "it does not fit" in told(capsys, "memory", "llama-3-70b", "--device", "l4")


def test_a_limit_in_bytes_stands_for_a_device(capsys: pytest.CaptureFixture[str]) -> None:
    plan = found(capsys, "memory", "mamba-2.8b", "--memory-limit", "24GiB", "--context", "100k")["plan"]
    assert plan["limit_bytes"] == 24 * GIB
    assert plan["pool_tokens"] == 0
    assert plan["sequences"] > 0
    assert "keep a state instead" in told(capsys, "memory", "mamba-2.8b")


def test_published_formats_are_the_default(capsys: pytest.CaptureFixture[str]) -> None:
    assert found(capsys, "memory", "deepseek-v3", "--device", "h200")["plan"]["weights"] == "fp8-block"
    assert found(capsys, "memory", "gpt-oss-20b", "--device", "h100")["plan"]["weights"] == "mxfp4"


def test_training(capsys: pytest.CaptureFixture[str]) -> None:
    made = found(capsys, "memory", "llama-2-7b", "--training", "--replicas", "64")["training"]
    states = ("weights_bytes", "gradients_bytes", "optimizer_bytes")
    whole = sum(made["zero"]["0"][name] for name in states)
    assert whole == 16 * 6_738_415_616
    assert sum(made["zero"]["3"][name] for name in states) == pytest.approx(whole / 64, abs=3)
    one = found(capsys, "memory", "llama-2-7b", "--training", "--zero", "1", "--checkpoint", "full")[
        "training"
    ]
    assert list(one["zero"]) == ["1"]
    assert "ZeRO 3" in told(capsys, "memory", "llama-2-7b", "--training")


def test_the_list_of_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(found(capsys, "memory", "--list")) == list(known.names())
    assert "openai-community/gpt2" in told(capsys, "memory", "--list")


def test_what_the_engine_does_not_run_is_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(known.config("mixtral-8x7b")))
    assert cli.main(["plan", "memory", str(tmp_path), "--json"]) == 0
    said = capsys.readouterr()
    assert "its shape is counted instead" in said.err
    assert json.loads(said.out)["active_parameters"] == 12_879_925_248


def test_flops(capsys: pytest.CaptureFixture[str]) -> None:
    made = found(capsys, "flops", "llama-2-7b", "--by-layer", "--device", "h100", "--batch", "32")
    assert made["prefill"]["total"] == 27_626_028_662_784
    assert made["decode"]["total"] == 15_361_638_400
    assert made["training_per_token"]["model"] == 42_864_476_160
    (layer,) = made["layers"]
    assert layer["layers"] == 32
    roofline = made["roofline"]
    assert round(roofline["crossover_batch"]) == 295
    assert roofline["steps"]["prefill"]["bound"] == "compute"
    assert roofline["steps"]["decode"]["bound"] == "memory"
    text = told(capsys, "flops", "llama-2-7b", "--by-layer", "--device", "h100")
    assert "27.6 TFLOP" in text
    assert "1.081 x 6 of each weight" in text


def test_latents_absorbed_or_not(capsys: pytest.CaptureFixture[str]) -> None:
    plain, absorbed = (
        found(capsys, "flops", "deepseek-v3", *more)["decode"]["attention"] for more in ((), ("--absorbed",))
    )
    assert (plain, absorbed) == (4096 * 4_997_120, 4096 * 16_990_208)


def test_comm(capsys: pytest.CaptureFixture[str]) -> None:
    made = found(capsys, "comm", "llama-3-70b", "--tokens", "1", "--device", "h100")
    traffic = {one["what"]: one for one in made["traffic"]}
    assert traffic["tensor parallel"]["sent_bytes"] == 4_587_520
    assert "expert parallel" not in traffic
    decode = made["decode"]
    assert decode["seconds"]["nvlink4"] < decode["compute_s"] < decode["seconds"]["infiniband-ndr"]
    assert made["bubble"] == pytest.approx(7 / 15)
    text = told(capsys, "comm", "mixtral-8x7b", "--link", "pcie4")
    assert "expert parallel" in text
    assert "pcie4" in text


def test_block(capsys: pytest.CaptureFixture[str]) -> None:
    made = found(capsys, "block", "deepseek-v3", "--batch", "32", "--device", "h200")
    assert [block["layers"] for block in made["blocks"]] == [3, 58]
    assert (made["weights"], made["precision"]) == ("fp8-block", "fp8")
    ops = {op["name"]: op for op in made["blocks"][1]["ops"]}
    assert ops["values"]["flop"] == 32 * 4096 * 2 * 128 * 512
    text = told(capsys, "block", "gpt2", "--tokens", "128", "--layer", "3")
    assert "1 layer of Attention 12/12 x 64" in text
    assert "scores" in text


@pytest.mark.parametrize(
    ("words", "code", "hint"),
    [
        (("memory", "llama-3-8b", "--dtype", "bf16"), 2, "a plan of any shape has no use for it"),
        (("memory", "llama-3-8b", "--zero", "3"), 2, "--zero goes with --training"),
        (("memory", "llama-3-8b", "--training", "--kv", "fp8"), 2, "--kv is of serving"),
        (("memory", "llama-3-8b", "--weights", "int3"), 2, "known are fp32"),
        (
            ("memory", "llama-3-8b", "--device", "h100", "--tensor-parallel", "3"),
            2,
            "does not divide the 32 heads",
        ),
        (("memory", "llama-3-9b"), 3, "near it are llama-3-8b"),
        (("flops", "llama-3-9b"), 3, "near it are llama-3-8b"),
        (("flops", "llama-3-8b", "--prompt-tokens", "8", "--cached-tokens", "8"), 2, "cached tokens must be"),
        (("flops", "llama-3-8b", "--device", "h1000"), 2, "near it are"),
        (("flops", "llama-3-8b", "--context", "0"), 2, "--context must be at least 1"),
        (("comm", "llama-3-8b", "--link", "string"), 2, "known are nvlink2"),
        (("block", "llama-3-8b", "--layer", "32"), 2, "--layer must be from 0 to 31"),
        (("block", "llama-3-8b", "--context", "5"), 2, "--context goes with --batch"),
        (("block", "llama-3-8b", "--batch", "5", "--tokens", "5"), 2, "leave one out"),
    ],
)
def test_what_is_wrong_is_said(
    words: tuple[str, ...], code: int, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["plan", *words]) == code
    assert hint in capsys.readouterr().err
