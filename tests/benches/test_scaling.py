"""Figures of company: growth, long contexts, prefix hits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benches.record import read
from benches.serving import scaling, where
from tests.benches.made import LIMITS
from tests.benches.test_serving import TINY
from tests.engine.timed_fake import FakeLLM


def test_an_engine_whose_steps_cost_the_same_with_any_company_grows_with_the_number() -> None:
    found = scaling.growth(FakeLLM(90), 90, 0)
    assert found["times_one"] == pytest.approx(32)
    assert found["decode_tokens_per_s_1"] == pytest.approx(4.0)
    assert found["decode_tokens_per_s_8"] == pytest.approx(32.0)


def test_a_step_of_long_contexts_is_held_against_weights_keys_and_values() -> None:
    found = scaling.context(FakeLLM(90), 90, 2048, 10**9, 1000, 2e10, 0)
    assert found["step_bytes"] == 10**9 + 8 * (2048 + 8) * 1000
    assert found["step_s"] == pytest.approx(0.25)
    assert found["times_floor"] == pytest.approx(0.25 / (found["step_bytes"] / 2e10))


def test_prefix_hits_are_held_against_the_prefix_once_and_the_rest() -> None:
    llm = FakeLLM(90)
    found = scaling.prefix_hits(llm, 90, 1024, 4, 0)
    alone, on_top, at_once = (list(prompts) for prompts, _ in llm.calls)
    assert [len(ids) for ids in on_top] == [len(ids) for ids in at_once] == [1024 + 32] * 4
    assert all(ids[:1024] == alone[0] for ids in on_top)
    assert len({tuple(ids[:1024]) for ids in at_once} | {tuple(alone[0])}) == 2
    answers_s = 0.3 + 1.0 + 31 * 0.25
    assert found["share"] == pytest.approx((1.0 + answers_s) / answers_s)
    assert found["implied_tokens_per_s"] == pytest.approx(4 * 32 / (1.0 + answers_s))


def test_a_whole_run_on_a_tiny_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(scaling, "measure_machine", lambda _: LIMITS)
    config = tmp_path / "tiny.json"
    config.write_text(json.dumps({**TINY, "max_position_embeddings": 256}))
    words = ["--model", str(config), "--repeats", "1", "--threads", "1", "--requests", "3"]
    assert scaling.main([*words, "--results", str(tmp_path)]) == 0
    made = {one.slug: one for one in map(read, tmp_path.glob("*/*.json"))}
    assert sorted(made) == [f"scaling-{name}-tiny-float32" for name in ("context", "growth", "prefix")]
    assert made["scaling-context-tiny-float32"].shape["context_tokens"] == 256 - 17
    prefix = made["scaling-prefix-tiny-float32"]
    assert prefix.shape["prefix_tokens"] == 192
    assert prefix.subjects["octavo"]["cached_prompt_tokens"].median == 2 * 192
    with pytest.raises(SystemExit):
        scaling.main(["--questions", "growth,speed"])
    assert "questions are growth, context, prefix" in capsys.readouterr().err


def test_shares_of_a_tiny_models_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(where, "measure_machine", lambda _: LIMITS)
    config = tmp_path / "tiny.json"
    config.write_text(json.dumps({**TINY, "max_position_embeddings": 256}))
    words = ["--model", str(config), "--repeats", "1", "--threads", "1", "--results", str(tmp_path)]
    assert where.main(words) == 0
    (made,) = map(read, tmp_path.glob("*/*.json"))
    assert sorted(made.subjects) == ["long", "one", "prompt"]
    for figures in made.subjects.values():
        parts = {name: series.median for name, series in figures.items() if name != "wall_s"}
        assert {"in_products", "in_attention", "in_rope", "in_norm", "in_embed", "outside"} <= set(parts)
        assert sum(parts.values()) == pytest.approx(1)
        assert min(parts.values()) > 0
