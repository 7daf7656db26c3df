"""Many clients at once and bodies nobody would write: the server answers each and keeps nothing."""

from __future__ import annotations

import asyncio
import random

import httpx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from octavo.api.chat import ChatRequest
from octavo.api.completions import CompletionRequest
from octavo.api.parse import NOT_BUILT
from tests.server.process import Served

NUM_CLIENTS = 48


def test_clients_that_come_and_go_leave_nothing_running(server):
    """Some leave before the first byte, some after a token, some read to the end."""

    async def one(client: httpx.AsyncClient, number: int) -> str | None:
        rng = random.Random(number)
        if number % 3 == 0:
            body = {"prompt": f"say:answer {number}", "max_tokens": 50}
            return (await client.post("/v1/completions", json=body)).json()["choices"][0]["text"]
        body = {"prompt": "!forever", "max_tokens": 10**6, "stream": True}
        async with asyncio.timeout(rng.random() if number % 3 == 1 else None):
            async with client.stream("POST", "/v1/completions", json=body) as answer:
                async for _ in answer.aiter_lines():
                    if number % 3 == 2:
                        return None
        return None

    async def storm() -> list[object]:
        limits = httpx.Limits(max_connections=NUM_CLIENTS)
        async with httpx.AsyncClient(base_url=server.url, timeout=60, limits=limits) as client:
            return await asyncio.gather(*[one(client, i) for i in range(NUM_CLIENTS)], return_exceptions=True)

    outcomes = asyncio.run(storm())
    assert outcomes[::3] == [f"answer {i}" for i in range(0, NUM_CLIENTS, 3)]
    assert all(outcome is None for outcome in outcomes[2::3])
    assert all(isinstance(outcome, TimeoutError) for outcome in outcomes[1::3])
    health = server.until(lambda health: health["requests"] == 0 and health["engine"]["running"] == 0)
    assert health["status"] == "ready"


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 200)
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=2),
    max_leaves=5,
)
fields = sorted(
    {*ChatRequest.__struct_fields__, *CompletionRequest.__struct_fields__, *NOT_BUILT} - {"max_tokens"}
)
chat_bodies = st.fixed_dictionaries(
    {"messages": st.just([{"role": "user", "content": "say:hi"}]) | values, "max_tokens": st.integers(-1, 9)}
)
text_bodies = st.fixed_dictionaries({"prompt": st.just("say:hi") | values, "max_tokens": st.integers(-1, 9)})


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_body_is_answered_or_refused_by_name(server: Served, data: st.DataObject):
    is_chat = data.draw(st.booleans())
    body = data.draw(chat_bodies if is_chat else text_bodies)
    body |= data.draw(st.dictionaries(st.sampled_from(fields), values, max_size=3))
    path = "/v1/chat/completions" if is_chat else "/v1/completions"
    answer = server.post(path, body)
    assert answer.status_code in (200, 400, 404), answer.text
    if answer.status_code != 200:
        error = answer.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["type"] == "invalid_request_error"
    elif body.get("stream"):
        assert answer.text.endswith("data: [DONE]\n\n")
    else:
        assert answer.json()["choices"]
