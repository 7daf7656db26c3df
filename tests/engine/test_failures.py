"""What breaks, whom it hurts, and who hears of it."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from octavo import LLM, AsyncLLM, SamplingParams
from octavo.engine.outputs import RequestEnded
from octavo.errors import Bug, LoadError
from tests.engine.tiny import CONFIG, SMALL, engine, tokenizer, weights

POISON = 7
"""The token whose attention scores overflow in `explosive`."""

PARAMS = SamplingParams(
    temperature=0.0, max_tokens=12, ignore_eos=True, logprobs=1, logit_bias={POISON: -100.0}
)


@pytest.fixture(scope="module")
def explosive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of finite weights that computes NaN wherever the token POISON is seen, and only there.

    Hidden dimension 0 belongs to that token alone; the first norm and q stretch it past float32.
    """
    folder = tmp_path_factory.mktemp("explosive")
    tensors = weights(CONFIG)
    tensors["model.embed_tokens.weight"][:, 0] = 0.0
    tensors["model.embed_tokens.weight"][POISON, 0] = 3.0
    for name, tensor in tensors.items():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            tensor[0] = 0.0
    tensors["model.layers.0.input_layernorm.weight"][0] = 1e30
    tensors["model.layers.0.self_attn.q_proj.weight"][:, 0] = 1e10
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    tokenizer().save(str(folder / "tokenizer.json"))
    return folder


@pytest.mark.parametrize("n", [1, 3])
def test_nan_ends_its_own_request_and_no_other(explosive: Path, n: int) -> None:
    good = [[1, 2, 3], [4] * 20, [5, 6]]
    bad = [9, 10, POISON, 11]
    params = replace(PARAMS, n=n, temperature=0.5, seed=2)
    with engine(explosive) as llm:
        expected = [llm.generate([prompt], params)[0] for prompt in good]
        outputs = llm.generate([good[0], bad, good[1], [POISON], good[2]], params)
        while llm.engine.is_busy:
            llm.engine.step()
        llm.engine.scheduler.check()
        assert llm.engine.counts().used_kv_blocks == 0
    for output in (outputs[1], outputs[3]):
        assert {choice.finish_reason for choice in output.outputs} == {"error"}
        assert all("NaN" in (choice.error or "") for choice in output.outputs)
        assert all(choice.token_ids == [] for choice in output.outputs)
        assert output.metrics.finished_s is not None
    for output, wanted in zip((outputs[0], outputs[2], outputs[4]), expected, strict=True):
        assert [choice.token_ids for choice in output.outputs] == [
            choice.token_ids for choice in wanted.outputs
        ]
        assert [choice.logprobs for choice in output.outputs] == [
            choice.logprobs for choice in wanted.outputs
        ]


def test_nan_in_the_middle_of_an_answer_keeps_what_came_before(explosive: Path) -> None:
    """The poison token is forced as the second one: its successor cannot be drawn."""
    with engine(explosive) as llm:
        free = llm.generate([[1, 2]], PARAMS)[0].outputs[0]
        stubborn = replace(PARAMS, temperature=0.0, logit_bias={POISON: 100.0})
        output = llm.generate([[1, 2]], stubborn)[0].outputs[0]
        assert (output.token_ids, output.finish_reason) == ([POISON], "error")
        assert "NaN" in (output.error or "")
        assert llm.generate([[1, 2]], PARAMS)[0].outputs[0].token_ids == free.token_ids


def test_nan_ends_beams_and_prompt_logprobs_with_an_error(explosive: Path) -> None:
    with engine(explosive) as llm:
        beams = SamplingParams(beam_width=3, n=2, temperature=0.0, max_tokens=4)
        scored = replace(PARAMS, prompt_logprobs=1)
        outputs = llm.generate([[1, POISON, 2]] * 2, [beams, scored])
        assert [output.outputs[0].finish_reason for output in outputs] == ["error", "error"]
        assert len(llm.generate([[1, 2]], PARAMS)[0].outputs[0].token_ids) == 12


class Broken(RuntimeError):
    pass


def break_after(llm: Any, num_steps: int) -> None:
    """Make the executor raise from its `num_steps + 1`-th step on."""
    runner = llm.built.engine._executor
    run, count = runner.run, 0

    def failing(*arguments: Any) -> Any:
        nonlocal count
        count += 1
        if count > num_steps:
            raise Broken("the device is gone")
        return run(*arguments)

    runner.run = failing


def test_a_broken_executor_reaches_the_caller(tiny: Path) -> None:
    with engine(tiny) as llm:
        break_after(llm, 3)
        with pytest.raises(Bug, match="the device is gone") as caught:
            llm.generate([[1], [2]], PARAMS)
        assert isinstance(caught.value.__cause__, Broken)
        with pytest.raises(Bug, match="the device is gone"):
            llm.generate([[3]], PARAMS)


def test_a_broken_executor_reaches_every_waiting_caller(tiny: Path) -> None:
    async def ask(llm: AsyncLLM, prompt: list[int]) -> None:
        async for update in llm.generate(prompt, PARAMS):
            assert not isinstance(update, RequestEnded)

    async def work() -> None:
        llm = AsyncLLM(str(tiny), **(SMALL | {"max_num_seqs": 2}))
        break_after(llm, 4)
        found = await asyncio.gather(*(ask(llm, [i, i]) for i in range(6)), return_exceptions=True)
        assert [type(one) for one in found] == [Bug] * 6
        assert all("the device is gone" in str(one) for one in found)
        with pytest.raises(Bug, match="the engine has failed"):
            await ask(llm, [1])
        with pytest.raises(Bug, match="the engine has failed"):
            await llm.cancel("any")
        await llm.close()

    asyncio.run(asyncio.wait_for(work(), timeout=60))


def test_a_command_that_raises_what_nobody_expected_is_answered_too(tiny: Path) -> None:
    """The caller hears the error itself; the engine, whose state is now unknown, stops for everybody."""

    def surprising() -> None:
        raise Broken("surprise")

    async def work() -> None:
        llm = AsyncLLM(str(tiny), **SMALL)
        with pytest.raises(Broken, match="surprise"):
            await asyncio.wrap_future(llm._thread.call(surprising))
        with pytest.raises(Bug, match="surprise"):
            await llm.cancel("any")
        await llm.close()

    asyncio.run(asyncio.wait_for(work(), timeout=60))


def test_weights_that_are_not_finite_are_refused_at_load(tmp_path: Path) -> None:
    tensors = weights(CONFIG)
    tensors["model.norm.weight"][3] = torch.inf
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    tokenizer().save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(LoadError, match=r"model\.norm\.weight holds infinite or undefined values"):
        engine(tmp_path)


def test_a_failed_load_leaves_no_thread_behind(tmp_path: Path) -> None:
    import threading

    before = threading.active_count()
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    with pytest.raises(LoadError):
        LLM(str(tmp_path), num_threads=1)
    assert threading.active_count() == before
