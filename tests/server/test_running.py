"""What one request has running: order, merging, refusal, failure, abandonment; and bodies that never end."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from octavo.api.faults import HttpError
from octavo.core.sequence import SamplingParams
from octavo.link import frames
from octavo.server.running import Gone, Running
from octavo.server.tenants import PUBLIC, Tenant


def running(*ids: str) -> Running:
    return Running(
        [frames.Submit(request_id=name, prompt_token_ids=(1,), params=SamplingParams()) for name in ids]
    )


def delta(name: str, text: str, index: int = 0, **more: Any) -> frames.Delta:
    return frames.Delta(request_id=name, index=index, text=text, token_ids=(len(text),), **more)


def ended(name: str) -> frames.Ended:
    return frames.Ended(
        request_id=name,
        usage=frames.Usage(prompt_tokens=1, completion_tokens=1),
        metrics=frames.Metrics(arrival_s=0.0),
    )


def test_deltas_of_one_choice_that_wait_together_become_one():
    async def scene() -> None:
        one = running("a", "b")
        entry = frames.TokenLogprob(token_id=1, logprob=-0.5)
        one.deliver(delta("a", "x", logprobs=(entry,)))
        one.deliver(delta("a", "yz", logprobs=(entry,)))
        one.deliver(delta("a", "other", index=1))
        one.deliver(delta("b", "third"))
        one.deliver(delta("b", "fourth"))
        merged = await one.next()
        assert (merged.text, merged.token_ids, merged.logprobs) == ("xyz", (1, 2), (entry, entry))
        assert (await one.next()).text == "other"
        assert (await one.next()).text == "thirdfourth"
        assert await one.next(0.001) is None

    asyncio.run(scene())


def test_text_without_tokens_takes_nothing_from_the_tokens_before_it():
    """The last text of a choice, held back until its end, comes without tokens and without their entries."""

    async def scene() -> None:
        one = running("a")
        entry = frames.TokenLogprob(token_id=1, logprob=-0.5)
        one.deliver(delta("a", "x", logprobs=(entry,)))
        one.deliver(frames.Delta(request_id="a", index=0, text="rest", token_ids=()))
        merged = await one.next()
        assert (merged.text, merged.token_ids, merged.logprobs) == ("xrest", (1,), (entry,))

    asyncio.run(scene())


def test_nothing_is_merged_across_an_end():
    async def scene() -> None:
        one = running("a")
        one.deliver(delta("a", "x"))
        one.deliver(frames.ChoiceEnded(request_id="a", index=0, finish_reason="stop"))
        one.deliver(ended("a"))
        assert [type(await one.next()).__name__ for _ in range(3)] == ["Delta", "ChoiceEnded", "Ended"]
        assert one.unfinished == frozenset()

    asyncio.run(scene())


def test_admission_waits_for_every_prompt():
    async def scene() -> None:
        one = running("a", "b")
        waiting = asyncio.create_task(one.admitted())
        one.deliver(frames.Accepted(request_id="a"))
        await asyncio.sleep(0.01)
        assert not waiting.done()
        one.deliver(frames.Accepted(request_id="b"))
        await asyncio.wait_for(waiting, 5)

    asyncio.run(scene())


def test_one_refusal_refuses_all_and_leaves_the_rest_to_be_cancelled():
    async def scene() -> None:
        one = running("a", "b")
        one.deliver(frames.Accepted(request_id="a"))
        one.deliver(frames.Refused(request_id="b", code="overloaded", message="full", retry_after_s=3.0))
        with pytest.raises(HttpError, match="full") as caught:
            await one.admitted()
        assert (caught.value.code, caught.value.retry_after_s) == ("overloaded", 3.0)
        assert one.unfinished == {"a"}

    asyncio.run(scene())


def test_a_failure_comes_after_what_has_arrived_and_comes_again():
    async def scene() -> None:
        one = running("a")
        one.deliver(delta("a", "x"))
        one.fail(HttpError("engine_error", "first"))
        one.fail(HttpError("engine_error", "second"))
        assert (await one.next()).text == "x"
        for _ in range(2):
            with pytest.raises(HttpError, match="first"):
                await one.next()

    asyncio.run(scene())


def test_an_abandoned_request_stops_whoever_waits_for_it():
    async def scene() -> None:
        one = running("a")
        waiting = [asyncio.create_task(one.next()), asyncio.create_task(one.admitted())]
        await asyncio.sleep(0)
        one.abandon()
        for task in waiting:
            with pytest.raises(Gone):
                await asyncio.wait_for(task, 5)

    asyncio.run(scene())


def test_namespaces_differ_by_key_and_by_salt():
    def space(key: str | None, salt: str | None) -> bytes:
        return (PUBLIC if key is None else Tenant.of_key(key)).namespace_with(salt)

    cases = [(None, None), ("a", None), ("b", None), ("a", "b"), ("ab", None), (None, "a"), ("", "ab")]
    spaces = [space(key, salt) for key, salt in cases]
    assert spaces[0] == b""
    assert len(set(spaces)) == len(spaces)
    assert space("a", "b") == space("a", "b")
    assert b"secret" not in space("secret", None)
    assert "secret" not in Tenant.of_key("secret").tenant_id
