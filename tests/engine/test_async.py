"""Many callers on one event loop: streams side by side, cancelled, left, refused, closed under them."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from octavo import AsyncLLM, SamplingParams
from octavo.engine.outputs import Delta, RequestEnded, RequestOutput
from octavo.errors import OctavoError, PromptTooLong, RequestError
from tests.engine.tiny import SMALL, engine

ENDLESS = SamplingParams(temperature=1.0, seed=1, max_tokens=None, ignore_eos=True)
LONG = SamplingParams(temperature=1.0, seed=1, max_tokens=200, ignore_eos=True)
SHORT = SamplingParams(temperature=0.0, max_tokens=5, ignore_eos=True)


def asynchronous(folder: Path, **settings: Any) -> AsyncLLM:
    return AsyncLLM(str(folder), **(SMALL | settings))


def run(work: Coroutine[Any, Any, Any]) -> Any:
    """Run to the end; a caller left without an answer shows as a timeout."""

    async def limited() -> Any:
        return await asyncio.wait_for(work, timeout=60)

    return asyncio.run(limited())


async def finish(llm: AsyncLLM, prompt: Any, params: SamplingParams, **more: Any) -> RequestOutput:
    last = None
    async for update in llm.generate(prompt, params, **more):
        last = update
    assert isinstance(last, RequestEnded)
    return last.output


async def quiet(llm: AsyncLLM) -> tuple[int, int, int]:
    """Running, waiting and used blocks once nothing is in flight; invariants are checked."""

    def look() -> tuple[bool, tuple[int, int, int]]:
        llm.built.engine.scheduler.check()
        counts = llm.built.engine.counts()
        return llm.built.engine.is_busy, (counts.num_running, counts.num_waiting, counts.used_kv_blocks)

    is_busy: bool
    counts: tuple[int, int, int]
    while True:
        is_busy, counts = await asyncio.wrap_future(llm._thread.call(look))
        if not is_busy:
            return counts
        await asyncio.sleep(0.001)


def test_streams_side_by_side_equal_the_offline_engine(tiny: Path) -> None:
    prompts = [[(i * 7 + j) % 250 for j in range(3 * i + 1)] for i in range(12)]
    params = [
        SamplingParams(temperature=0.7, seed=i, max_tokens=4 + i, n=1 + i % 2, ignore_eos=True)
        for i in range(12)
    ]

    async def work() -> list[RequestOutput]:
        llm = asynchronous(tiny)
        outputs = await asyncio.gather(*(finish(llm, p, q) for p, q in zip(prompts, params, strict=True)))
        assert await quiet(llm) == (0, 0, 0)
        await llm.close()
        return list(outputs)

    outputs = run(work())
    with engine(tiny) as llm:
        expected = llm.generate(prompts, params)
    for output, wanted in zip(outputs, expected, strict=True):
        assert [choice.token_ids for choice in output.outputs] == [
            choice.token_ids for choice in wanted.outputs
        ]
        assert [choice.text for choice in output.outputs] == [choice.text for choice in wanted.outputs]


def test_updates_add_up_and_the_end_comes_once(tiny: Path) -> None:
    async def work() -> None:
        llm = asynchronous(tiny)
        updates = [update async for update in llm.generate("hello", SHORT, request_id="mine")]
        assert {update.request_id for update in updates} == {"mine"}
        assert sum(isinstance(update, RequestEnded) for update in updates) == 1
        assert isinstance(updates[-1], RequestEnded)
        text = "".join(update.text for update in updates if isinstance(update, Delta))
        assert text == updates[-1].output.outputs[0].text
        await llm.close()

    run(work())


def test_cancel_ends_the_iterator_with_what_there_is(tiny: Path) -> None:
    async def work() -> None:
        llm = asynchronous(tiny)
        seen: list[Any] = []
        async for update in llm.generate([1, 2], LONG, request_id="doomed"):
            seen.append(update)
            if len(seen) == 3:
                await llm.cancel("doomed")
        output = seen[-1].output
        assert output.outputs[0].finish_reason == "cancelled"
        assert 3 <= len(output.outputs[0].token_ids) < 200
        await llm.cancel("doomed")
        await llm.cancel("never was")
        assert await quiet(llm) == (0, 0, 0)
        await llm.close()

    run(work())


@pytest.mark.parametrize("num_updates", [0, 1, 4])
def test_leaving_early_frees_everything(patient: Path, num_updates: int) -> None:
    """By `break`, by `aclose`, and by cancelling the task that reads."""

    async def reader(llm: AsyncLLM, started: asyncio.Event) -> None:
        async for _ in llm.generate([5, 6], ENDLESS):
            started.set()

    async def work() -> None:
        llm = asynchronous(patient, num_kv_blocks=16384)
        beside = asyncio.create_task(finish(llm, [9] * 20, SHORT))
        stream = llm.generate([1, 2, 3], ENDLESS)
        for _ in range(num_updates):
            await anext(stream)
        await stream.aclose()  # type: ignore[attr-defined]
        count = 0
        async for _ in llm.generate([3, 4], ENDLESS):
            count += 1
            if count > num_updates:
                break
        started = asyncio.Event()
        task = asyncio.create_task(reader(llm, started))
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert len((await beside).outputs[0].token_ids) == 5
        assert await quiet(llm) == (0, 0, 0)
        assert llm.built.engine.counts().num_steps < 10000, "a request nobody reads ran to its end"
        assert not llm._listeners
        await llm.close()

    run(work())


def test_a_task_cancelled_before_its_request_was_added_harms_nobody(tiny: Path) -> None:
    """The engine's thread is kept busy, so that the request is still queued when its caller goes."""

    async def work() -> None:
        llm = asynchronous(tiny)
        import threading

        gate = threading.Event()
        held = llm._thread.call(gate.wait)
        tasks = [asyncio.create_task(finish(llm, [i], LONG, request_id=f"r{i}")) for i in range(3)]
        await asyncio.sleep(0.05)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        gate.set()
        await asyncio.wrap_future(held)
        assert await quiet(llm) == (0, 0, 0)
        assert len((await finish(llm, [1], SHORT, request_id="r0")).outputs[0].token_ids) == 5
        await llm.close()

    run(work())


@pytest.mark.parametrize(
    ("prompt", "settings", "kind"),
    [
        ([], {}, RequestError),
        ([999], {}, RequestError),
        ([1] * 300, {}, PromptTooLong),
        (None, {}, RequestError),
        ([1], {"sampling_params": {"n": 1}}, RequestError),
        ([1], {"priority": "high"}, RequestError),
        ([1], {"namespace": "tenant"}, RequestError),
    ],
)
def test_a_bad_request_raises_before_its_first_update(
    tiny: Path, prompt: Any, settings: dict[str, Any], kind: type[Exception]
) -> None:
    async def work() -> None:
        llm = asynchronous(tiny)
        beside = asyncio.create_task(finish(llm, [1, 2], SHORT))
        with pytest.raises(kind):
            await anext(llm.generate(prompt, **settings))
        assert len((await beside).outputs[0].token_ids) == 5
        assert await quiet(llm) == (0, 0, 0)
        await llm.close()

    run(work())


def test_an_id_in_use_is_refused_and_its_owner_goes_on(tiny: Path) -> None:
    async def work() -> None:
        llm = asynchronous(tiny)
        stream = llm.generate([1, 2], LONG, request_id="same")
        await anext(stream)
        with pytest.raises(RequestError, match="same"):
            await finish(llm, [3], SHORT, request_id="same")
        num_more = len([update async for update in stream])
        assert num_more >= 200
        assert len((await finish(llm, [3], SHORT, request_id="same")).outputs[0].token_ids) == 5
        await llm.close()

    run(work())


def test_namespaces_do_not_share_cached_blocks(tiny: Path) -> None:
    async def work() -> list[int]:
        llm = asynchronous(tiny)
        prompt = [(i * 5) % 200 for i in range(40)]
        found = [
            (await finish(llm, prompt, SHORT, namespace=namespace)).metrics.cached_prompt_tokens
            for namespace in (b"a", b"b", b"a", b"b", b"")
        ]
        await llm.close()
        return found

    assert run(work()) == [0, 0, 39, 39, 0]


def test_closing_ends_every_request_once(tiny: Path) -> None:
    async def work() -> list[RequestOutput]:
        llm = asynchronous(tiny, max_num_seqs=2)
        tasks = [asyncio.create_task(finish(llm, [i, i], LONG)) for i in range(5)]
        stream = llm.generate([8], SHORT)
        await anext(stream)
        await llm.close()
        outputs = await asyncio.gather(*tasks)
        with pytest.raises(OctavoError, match="stopped"):
            await finish(llm, [1], SHORT)
        return list(outputs)

    assert {output.outputs[0].finish_reason for output in run(work())} == {"cancelled"}


def test_an_engine_outlives_the_event_loop_of_its_callers(tiny: Path) -> None:
    """A request whose event loop has gone is dropped; the next loop finds the engine well."""
    llm = asynchronous(tiny)

    async def leave() -> None:
        stream = llm.generate([1, 2], LONG)
        await anext(stream)
        left.append(stream)

    left: list[Any] = []
    loop = asyncio.new_event_loop()
    loop.run_until_complete(leave())
    loop.close()

    async def come_back() -> None:
        assert len((await finish(llm, [3], SHORT)).outputs[0].token_ids) == 5
        while await quiet(llm) != (0, 0, 0):
            await asyncio.sleep(0.001)
        await llm.close()

    run(come_back())
