"""Embeddings: against transformers, the same bits in any company, and what an engine refuses."""

from __future__ import annotations

from array import array
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from octavo import LLM, SamplingParams
from octavo.engine.outputs import RequestEnded, RequestOutput
from octavo.errors import RequestError
from octavo.exec.pooling import BadStates, Mean
from tests.engine.test_exact import jobs, poisoned, tokens
from tests.parity.bound import rounding_bound

EMBED = SamplingParams(embed=True)
LENGTHS = (1, 2, 17, 64, 65, 100)
BFLOAT16_UNIT = 2.0**-9


@pytest.fixture(params=["tiny", "half", "sliding"])
def model(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue(request.param))


def prompts(model: str) -> list[list[int]]:
    """Of many lengths; the first two share their beginning."""
    shared = tokens(model, 40, 3)
    return [shared + tokens(model, 9, 4), shared, *(tokens(model, n, 5 + i) for i, n in enumerate(LENGTHS))]


def embedded(llm: LLM, wanted: list[list[int]]) -> list[bytes]:
    outputs = llm.generate(wanted, EMBED)
    llm.engine.scheduler.check()
    return [vector(output) for output in outputs]


def vector(output: RequestOutput) -> bytes:
    assert output.embedding is not None
    (choice,) = output.outputs
    assert (choice.token_ids, choice.text, choice.finish_reason, choice.error) == ([], "", "stop", None)
    return output.embedding


def reference(model: str) -> list[bytes]:
    """Each prompt alone, in one piece, without a cache."""
    with poisoned(model, enable_prefix_caching=False, max_num_batched_tokens=128) as llm:
        return [embedded(llm, [prompt])[0] for prompt in prompts(model)]


def pooled(model: torch.nn.Module, prompt: list[int]) -> Tensor:
    """[1, E]: as the documentation says it, by transformers."""
    with torch.no_grad():
        states = model.model(torch.tensor([prompt])).last_hidden_state[0]  # type: ignore[union-attr]
    mean = states.double().mean(0)
    return (mean / mean.norm())[None]


def theirs(model: str, dtype: torch.dtype) -> torch.nn.Module:
    found = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=dtype, attn_implementation="eager")
    return found.eval()  # type: ignore[no-any-return]


def test_the_mean_of_what_transformers_computes(model: str) -> None:
    """Float32 within the bound that rounding earns; bfloat16 within the same bound at its coarser unit."""
    exact = theirs(model, torch.float64)
    unit = BFLOAT16_UNIT / 2.0**-24 if "half" in model else 1.0
    with poisoned(model) as llm:
        outputs = llm.embed(prompts(model))
    for prompt, output in zip(prompts(model), outputs, strict=True):
        want = pooled(exact, prompt)
        bound = unit * float(rounding_bound(exact, lambda one, prompt=prompt: pooled(one, prompt)))
        got = torch.tensor([output.outputs.embedding], dtype=torch.float64)
        assert float((got - want).norm()) <= bound < 1.0
        assert float(got.norm()) == pytest.approx(1.0, abs=1e-6)
        assert output.prompt_token_ids == prompt


@pytest.mark.parametrize(
    "settings",
    [
        {"max_num_batched_tokens": 512, "max_num_seqs": 10},
        {"max_chunk_tokens": 1, "max_num_batched_tokens": 8},
        {"max_chunk_tokens": 7},
        {"max_chunk_tokens": 13, "max_num_batched_tokens": 64},
        {"block_size": 1, "num_kv_blocks": 1025},
        {"block_size": 32, "num_kv_blocks": 33},
        {"max_num_seqs": 1},
        {"enable_prefix_caching": False},
    ],
)
def test_the_same_bits_in_any_company_and_chunks(model: str, settings: dict[str, Any]) -> None:
    with poisoned(model, **settings) as llm:
        assert embedded(llm, prompts(model)) == reference(model)


def test_the_same_bits_beside_requests_that_draw_and_the_other_way_round(model: str) -> None:
    drawing = jobs(model)
    wanted = [*prompts(model), *(prompt for prompt, _ in drawing)]
    params = [*(EMBED for _ in prompts(model)), *(one for _, one in drawing)]
    count = len(prompts(model))
    with poisoned(model) as llm:
        mixed = llm.generate(wanted, params)
    with poisoned(model) as llm:
        alone = llm.generate(wanted[count:], params[count:])
    assert [vector(output) for output in mixed[:count]] == reference(model)
    assert [[c.token_ids for c in one.outputs] for one in mixed[count:]] == [
        [c.token_ids for c in one.outputs] for one in alone
    ]


def test_the_cache_is_written_but_not_read(model: str) -> None:
    long = prompts(model)[0]
    with poisoned(model) as llm:
        first, second = embedded(llm, [long]), llm.generate([long], EMBED)
        assert vector(second[0]) == first[0]
        assert second[0].metrics.cached_prompt_tokens == 0
        assert second[0].metrics.cache_miss_reason == "an embedding was asked for"
        (after,) = llm.generate([long], SamplingParams(max_tokens=1))
        assert after.metrics.cached_prompt_tokens == len(long) - 1


def test_preempted_and_computed_again(model: str) -> None:
    """A pool that holds little more than the longest prompt."""
    needs = 5 if model.endswith("sliding") else 17
    wanted, params = list(prompts(model)), SamplingParams(temperature=0.0, max_tokens=30, ignore_eos=True)
    with poisoned(model, num_kv_blocks=needs + 1, max_chunk_tokens=8) as llm:
        for index, prompt in enumerate(wanted):
            llm.engine.add(prompt, EMBED, request_id=f"e{index}", priority=1)
        done: dict[str, RequestOutput] = {}
        num_turns = 0
        while llm.engine.is_busy:
            num_turns += 1
            if num_turns in (5, 20, 35):
                llm.engine.add(tokens(model, 90, num_turns), params, request_id=f"g{num_turns}")
            done |= {one.request_id: one.output for one in llm.engine.step() if isinstance(one, RequestEnded)}
            llm.engine.scheduler.check()
    assert [vector(done[f"e{index}"]) for index in range(len(wanted))] == reference(model)
    assert any(done[f"e{index}"].metrics.preemptions for index in range(len(wanted)))


def test_cancelled_on_the_way(tiny: Path) -> None:
    with poisoned(str(tiny), max_chunk_tokens=4) as llm:
        llm.engine.add(tokens(str(tiny), 100, 1), EMBED, request_id="doomed")
        for _ in range(3):
            assert llm.engine.step() == []
        (*_, ended) = llm.engine.cancel("doomed")
        assert isinstance(ended, RequestEnded)
        assert ended.output.embedding is None
        assert ended.output.outputs[0].finish_reason == "cancelled"
        while llm.engine.is_busy:
            llm.engine.step()
        llm.engine.scheduler.check()
        assert llm.engine.counts().used_kv_blocks == 0


def test_what_an_embedding_cannot_be_combined_with() -> None:
    for field, value in {"n": 2, "best_of": 2, "logprobs": 0, "prompt_logprobs": 0, "beam_width": 2}.items():
        with pytest.raises(RequestError) as caught:
            replace(EMBED, **{field: value})
        assert caught.value.param == field
    with pytest.raises(RequestError, match="embed must be true or false"):
        SamplingParams(embed="yes")  # type: ignore[arg-type]


def test_a_prompt_as_long_as_the_window_is_refused(tiny: Path) -> None:
    with poisoned(str(tiny)) as llm:
        assert len(llm.embed([[5] * 127])) == 1
        with pytest.raises(RequestError, match="window is 128 tokens"):
            llm.embed([[5] * 128])


def test_sums_are_the_same_in_any_order_and_pieces() -> None:
    generator = torch.Generator().manual_seed(5)
    rows = torch.randn(131, 7, generator=generator) * torch.logspace(-6, 4, 131)[:, None]
    found = set()
    for chunk in (1, 2, 63, 64, 65, 131):
        for order in (torch.arange(131), torch.randperm(131, generator=generator)):
            mean = Mean()
            for part in rows[order].split(chunk):
                mean.add(part)
            found.add(mean.unit())
    (one,) = found
    want = rows.double().mean(0)
    got = torch.tensor(array("f", one).tolist(), dtype=torch.float64)
    assert torch.allclose(got, want / want.norm(), atol=2.0**-24, rtol=0)


def test_zeros_have_no_direction_and_broken_states_no_mean() -> None:
    mean = Mean()
    mean.add(torch.zeros(3, 4))
    assert mean.unit() == bytes(16)
    for bad in (float("nan"), float("inf"), 1e9):
        with pytest.raises(BadStates):
            Mean().add(torch.tensor([[0.0, bad]]))
