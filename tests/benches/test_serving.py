"""The serving bench: its figures by hand, its gate against a liar, and a whole run on a tiny model."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from benches.harness import GateFailed, Settings, answer
from benches.record import read
from benches.serving import workloads as serving
from benches.serving.shares import decode_read_bytes, prompt_flop
from benches.workloads import shape
from octavo.arch import Arch
from octavo.engine.outputs import RequestOutput
from octavo.planner import panels
from tests.benches.made import LIMITS
from tests.engine.timed_fake import FakeLLM

TINY = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 90,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
}
MISTRAL = {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": 5}


@pytest.mark.parametrize(
    ("name", "parameters"), [("qwen3-0.6b", 596_049_920), ("llama-3.2-1b", 1_235_814_400)]
)
def test_shapes_have_the_published_number_of_parameters(name: str, parameters: int) -> None:
    assert name in serving.shape_names()
    assert Arch.from_file(serving.CONFIGS / f"{name}.json").num_parameters() == parameters


def count_flop(arch: Arch, num_tokens: int) -> int:
    """Multiply-adds one by one, over layers and positions."""
    total = 0
    for window in arch.windows:
        for position in range(num_tokens):
            q_size, kv_size = arch.num_heads * arch.head_dim, arch.num_kv_heads * arch.head_dim
            for num_in, num_out in (
                (arch.hidden_size, q_size), (arch.hidden_size, kv_size), (arch.hidden_size, kv_size),
                (q_size, arch.hidden_size), (arch.hidden_size, arch.ffn_size), (arch.hidden_size, arch.ffn_size),
                (arch.ffn_size, arch.hidden_size),
            ):  # fmt: skip
                total += num_in * num_out
            seen = len(range(0 if window is None else max(0, position - window + 1), position + 1))
            total += 2 * seen * arch.head_dim * arch.num_heads
    return 2 * (total + arch.hidden_size * arch.vocab_size)


@pytest.mark.parametrize("change", [{}, MISTRAL])
def test_operations_of_a_prompt(change: dict[str, Any]) -> None:
    arch = Arch.from_config({**TINY, **change})
    for num_tokens in (1, 4, 5, 6, 33):
        assert prompt_flop(arch, num_tokens) == count_flop(arch, num_tokens)


def test_decoding_reads_a_tied_embedding_as_the_head_and_an_untied_one_not_at_all() -> None:
    untied = Arch.from_config(TINY)
    assert decode_read_bytes(untied, "float32") == 4 * (untied.num_parameters() - 90 * 32)
    tied = Arch.from_config({**TINY, "tie_word_embeddings": True})
    assert decode_read_bytes(tied, "float32") == 4 * tied.num_parameters()


@pytest.mark.parametrize("quantization", ["int8", "int4", "w4a16"])
def test_decoding_reads_quantized_weights_with_their_scales(quantization: str) -> None:
    tied = Arch.from_file(serving.CONFIGS / "qwen3-0.6b.json")
    read_bytes = decode_read_bytes(tied, "bfloat16", quantization)
    assert read_bytes == panels.weight_bytes(tied, "bfloat16", quantization)
    bits = {"int8": 8.0, "int4": 4.5, "w4a16": 4.5}[quantization]
    embedding = tied.vocab_size * tied.hidden_size
    floor = (tied.num_parameters() - embedding) * bits / 8 + embedding
    assert floor < read_bytes < 1.01 * floor
    untied = Arch.from_config({**TINY, "tie_word_embeddings": False})
    whole = panels.weight_bytes(untied, "bfloat16", quantization)
    assert decode_read_bytes(untied, "bfloat16", quantization) == whole - 2 * 90 * 32


def measured(name: str) -> dict[str, float]:
    """Medians of a workload on the fake, whose first token takes 1 s and each further one 0.25 s."""
    llm, arch = FakeLLM(vocab_size=90), Arch.from_config(TINY)
    bench = serving.bench(llm, "tiny", shape(name), "float32", arch, LIMITS, lambda: "right", ["a note"])
    made = answer(bench, Settings(repeats=2, warmup=1), limits=LIMITS)
    assert made.notes[0] == "a note"
    assert [sum(map(len, ids)) for ids, _ in llm.calls[-2:]] == [shape(name).num_prompt_tokens] * 2
    return {figure: series.median for figure, series in made.subjects["octavo"].items()}


def test_w1_is_the_rate_of_decoding_and_its_share_of_the_read_rate() -> None:
    found = measured("W1")
    assert found["decode_tokens_per_s"] == pytest.approx(4.0)
    assert found["ttft_s"] == pytest.approx(1.0)
    read_bytes = decode_read_bytes(Arch.from_config(TINY), "float32")
    assert found["weight_read_share"] == pytest.approx(read_bytes * 4.0 / 2e10)


def test_w2_is_the_rate_of_reading_and_its_share_of_the_matrix_rate() -> None:
    found = measured("W2")
    assert found["prompt_tokens_per_s"] == pytest.approx(2048.0)
    assert found["matrix_share"] == pytest.approx(prompt_flop(Arch.from_config(TINY), 2048) / 2e11)


def test_w3_to_w5_are_throughputs_with_memory_beside() -> None:
    found = measured("W5")
    wall_s = 7 * 0.1 + 1.0 + 63 * 0.25
    assert found["output_tokens_per_s"] == pytest.approx(8 * 64 / wall_s)
    assert found["total_tokens_per_s"] == pytest.approx(8 * (2048 + 64) / wall_s)
    for name in ("W3", "W4", "W5"):
        beside = measured(name)
        assert beside["peak_bytes"] > 0
        assert beside["preemptions"] == 0


def test_an_engine_whose_answers_depend_on_company_is_not_timed() -> None:
    class Sways(FakeLLM):
        def generate(self, prompts: Any, sampling_params: Any) -> list[RequestOutput]:
            outputs = super().generate(prompts, sampling_params)
            for output in outputs:
                output.outputs[0].token_ids[-1] = len(outputs)
            return outputs

    assert "equal tokens" in serving.gate(FakeLLM(), 90)
    with pytest.raises(GateFailed, match="alone and"):
        serving.gate(Sways(), 90)


def test_a_whole_run_on_a_tiny_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(serving, "measure_machine", lambda _: LIMITS)
    config = tmp_path / "tiny.json"
    config.write_text(json.dumps(TINY))
    words = ["--model", str(config), "--workloads", "W1,W2", "--repeats", "2", "--threads", "1"]
    assert serving.main([*words, "--results", str(tmp_path)]) == 0
    assert "W1: how fast does tiny decode at batch 1" in capsys.readouterr().out
    first, second = (read(path) for path in sorted(tmp_path.glob("*/*.json")))
    assert (first.slug, second.slug) == ("serving-w1-tiny-float32", "serving-w2-tiny-float32")
    assert first.shape["prompt_tokens"] == 128
    assert second.shape["prompt_tokens"] == 2047
    assert "2048 to 2047" in second.notes[0]
    assert str(tmp_path) not in first.command
    assert "--model tiny.json" in first.command
    assert any("linear" in note for note in first.notes)
    assert first.gate == second.gate
    assert re.search(r"with [1-9]\d* of 171 prompt tokens from the cache", first.gate)
    for made in (first, second):
        figures = made.subjects["octavo"]
        assert figures["preemptions"].values == figures["cached_prompt_tokens"].values == (0.0, 0.0)


def test_unknown_workloads_and_models_end_with_a_line_that_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(serving, "measure_machine", lambda _: LIMITS)
    assert serving.main(["--workloads", "W1,W7", "--threads", "1"]) == 2
    assert "no workload 'W7'; there are: W1, W2, W3, W4, W5" in capsys.readouterr().err
    assert serving.main(["--model", str(tmp_path / "none"), "--threads", "1"]) == 2
    assert "no model" in capsys.readouterr().err
    narrow = tmp_path / "narrow.json"
    narrow.write_text(json.dumps({**TINY, "max_position_embeddings": 64}))
    assert serving.main(["--model", str(narrow), "--threads", "1"]) == 2
    assert "W1 does not fit a window of 64 tokens; it needs 256" in capsys.readouterr().err
