"""Beam search through the engine equals transformers', alone and in company."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from octavo import LLM, SamplingParams
from octavo.engine.outputs import RequestOutput
from tests.engine.tiny import END, VOCAB, engine, write_checkpoint

ENDS = [END, *range(3, 120, 9)]
"""Many end tokens, so that beams end at every length."""

PROMPTS = [[7, 8, 9, 10, 11], [250, 3, 77], [(i * 29) % 280 for i in range(33)]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(
        tmp_path_factory.mktemp("beams") / "model", seed=5, eos_token_id=ENDS, pad_token_id=0
    )


@pytest.fixture(scope="module")
def llm(folder: Path) -> Iterator[LLM]:
    with engine(folder) as made:
        yield made


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.eval()


def found(output: RequestOutput) -> list[tuple[list[int], str | None]]:
    return [(choice.token_ids, choice.finish_reason) for choice in output.outputs]


def by_transformers(
    model: Any, prompt: list[int], params: SamplingParams
) -> tuple[list[list[int]], list[float]]:
    ids = torch.tensor([prompt])
    with torch.inference_mode():
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            num_beams=params.beam_width,
            num_return_sequences=params.n,
            do_sample=False,
            max_new_tokens=params.max_tokens,
            length_penalty=params.length_penalty,
            early_stopping=params.early_stopping,
            eos_token_id=None if params.ignore_eos else ENDS,
            pad_token_id=VOCAB - 1,
            return_dict_in_generate=True,
            output_scores=True,
        )
    sequences = []
    for row in out.sequences[:, len(prompt) :].tolist():
        end = next(
            (i for i, token in enumerate(row) if token in ENDS and not params.ignore_eos), len(row) - 1
        )
        sequences.append(row[: end + 1])
    return sequences, out.sequences_scores.tolist()


@pytest.mark.parametrize("early_stopping", [False, True])
@pytest.mark.parametrize("length_penalty", [1.0, 0.0, 2.0, -1.0])
@pytest.mark.parametrize(("width", "n"), [(2, 1), (4, 4)])
def test_beams_equal_transformers(
    llm: LLM, theirs: Any, width: int, n: int, length_penalty: float, early_stopping: bool
) -> None:
    params = SamplingParams(
        beam_width=width, n=n, temperature=0.0, max_tokens=9, length_penalty=length_penalty,
        early_stopping=early_stopping,
    )  # fmt: skip
    for prompt, output in zip(PROMPTS, llm.generate(PROMPTS, params), strict=True):
        sequences, scores = by_transformers(theirs, prompt, params)
        assert [choice.token_ids for choice in output.outputs] == sequences
        for choice, score in zip(output.outputs, scores, strict=True):
            assert choice.cumulative_logprob is not None
            own = choice.cumulative_logprob / len(choice.token_ids) ** length_penalty
            assert own == pytest.approx(score, rel=1e-4)
            ended = choice.token_ids[-1] in ENDS
            assert choice.finish_reason == ("stop" if ended else "length")
            shown = choice.token_ids[:-1] if ended else choice.token_ids
            assert choice.text == llm.tokenizer.decode(shown)


def test_beams_without_ends_equal_transformers(llm: LLM, theirs: Any) -> None:
    params = SamplingParams(beam_width=3, n=3, temperature=0.0, max_tokens=7, ignore_eos=True)
    for prompt, output in zip(PROMPTS, llm.generate(PROMPTS, params), strict=True):
        assert [choice.token_ids for choice in output.outputs] == by_transformers(theirs, prompt, params)[0]


def test_some_beams_end_and_some_are_cut(llm: LLM) -> None:
    """Guards the tests above: both kinds of end occur."""
    params = SamplingParams(beam_width=4, n=4, temperature=0.0, max_tokens=9)
    reasons = [c.finish_reason for output in llm.generate(PROMPTS, params) for c in output.outputs]
    cut = SamplingParams(beam_width=4, n=4, temperature=0.0, max_tokens=2)
    reasons += [c.finish_reason for output in llm.generate(PROMPTS, cut) for c in output.outputs]
    assert set(reasons) == {"stop", "length"}


@pytest.mark.parametrize(
    "settings",
    [
        {"max_chunk_tokens": 3},
        {"max_num_seqs": 4, "max_num_batched_tokens": 4},
        {"block_size": 2, "num_kv_blocks": 200},
        {"enable_prefix_caching": False},
        {"max_model_len": 64, "num_kv_blocks": 14},
    ],
    ids=str,
)
def test_beams_do_not_depend_on_company(folder: Path, llm: LLM, settings: dict[str, Any]) -> None:
    """Beside ordinary requests and each other, chunked, out of memory: the same beams and the same bits."""
    beams = SamplingParams(beam_width=4, n=4, temperature=0.0, max_tokens=8)
    plain = SamplingParams(temperature=0.8, seed=1, max_tokens=12, ignore_eos=True)
    alone = [llm.generate([prompt], beams)[0] for prompt in PROMPTS]
    with engine(folder, **settings) as other:
        crowd = [*PROMPTS, *([i] * 20 for i in range(4)), *PROMPTS]
        params = [beams] * 3 + [plain] * 4 + [beams] * 3
        outputs = other.generate(crowd, params)
        while other.engine.is_busy:
            other.engine.step()
        other.engine.scheduler.check()
        assert other.engine.counts().used_kv_blocks == 0
    for got in (outputs[:3], outputs[7:]):
        for output, wanted in zip(got, alone, strict=True):
            assert found(output) == found(wanted)
            sums = [choice.cumulative_logprob for choice in output.outputs]
            assert sums == [choice.cumulative_logprob for choice in wanted.outputs]
    if "num_kv_blocks" in settings and settings["num_kv_blocks"] == 14:
        assert sum(output.metrics.preemptions for output in outputs) > 0


def test_cancelled_beams_give_what_they_have(llm: LLM) -> None:
    params = SamplingParams(beam_width=4, n=2, temperature=0.0, max_tokens=50, ignore_eos=True)
    llm.engine.add(PROMPTS[0], params, request_id="beams")
    for _ in range(12):
        assert llm.engine.step() == []
    (ended,) = llm.engine.cancel("beams")
    assert [choice.finish_reason for choice in ended.output.outputs] == ["cancelled"] * 2  # type: ignore[union-attr]
    assert all(choice.token_ids for choice in ended.output.outputs)  # type: ignore[union-attr]
    while llm.engine.is_busy:
        llm.engine.step()
    llm.engine.scheduler.check()
    assert llm.engine.counts().used_kv_blocks == 0


def test_penalties_min_tokens_and_stop_tokens_reach_the_beams(llm: LLM) -> None:
    base = {"beam_width": 3, "n": 1, "temperature": 0.0, "max_tokens": 10}
    (first,) = llm.generate([PROMPTS[0]], SamplingParams(**base, ignore_eos=True))  # type: ignore[arg-type]
    (late,) = llm.generate([PROMPTS[0]], SamplingParams(**base, min_tokens=6))  # type: ignore[arg-type]
    assert not set(late.outputs[0].token_ids[:6]) & set(ENDS)
    stop = first.outputs[0].token_ids[2]
    params = SamplingParams(**base, ignore_eos=True, stop_token_ids=(stop,))  # type: ignore[arg-type]
    (stopped,) = llm.generate([PROMPTS[0]], params)
    last = stopped.outputs[0]
    if last.finish_reason == "stop":
        assert (last.token_ids[-1], last.stop_reason) == (stop, stop)
    bias = dict.fromkeys(first.outputs[0].token_ids, -100.0)
    (biased,) = llm.generate([PROMPTS[0]], SamplingParams(**base, ignore_eos=True, logit_bias=bias))  # type: ignore[arg-type]
    assert not set(biased.outputs[0].token_ids) & set(bias)
