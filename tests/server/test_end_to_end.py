"""The real engine behind the real server, with the bundled model: what arrives is what the engine computes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import openai
import pytest

from octavo import LLM, SamplingParams
from tests.server.process import Served, serving
from tests.server.test_faults import children
from tests.server.test_metrics import samples, summed

REAL = (sys.executable, "-m", "octavo", "serve")
SETTINGS = {"num_kv_blocks": 512, "num_threads": 1, "max_num_seqs": 16}
FLAGS = [f"--{name.replace('_', '-')}={value}" for name, value in SETTINGS.items()]
OPERATOR_KEY = "the-operator's-own-key"
QUESTION = [{"role": "user", "content": "What does textwrap.dedent do?"}]


@pytest.fixture(scope="module")
def operator_socket(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("operator") / "admin.sock"


@pytest.fixture(scope="module")
def real(operator_socket: Path) -> Iterator[Served]:
    operated = ["--admin-socket", str(operator_socket), "--admin-key", OPERATOR_KEY]
    with serving([*FLAGS, *operated], REAL) as served:
        yield served


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(**SETTINGS) as made:
        yield made


@pytest.fixture(scope="module")
def client(real: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=real.url + "/v1", api_key="none", max_retries=0, timeout=120) as made:
        yield made


def test_ready_names_the_model_and_the_blocks(real):
    assert real.ready_line == f"ready: {real.url} (model quire, kv 511 blocks)\n"
    assert real.get("/v1/models").json()["data"][0]["max_model_len"] == 2048


def test_a_greedy_chat_is_the_engines_own_answer(client, llm):
    want = llm.chat(QUESTION, SamplingParams(temperature=0.0, max_tokens=40, logprobs=2))[0]
    got = client.chat.completions.create(
        model="quire", messages=QUESTION, temperature=0, max_tokens=40, logprobs=True, top_logprobs=2,
        extra_body={"return_token_ids": True},
    )  # fmt: skip
    (choice,) = got.choices
    assert choice.message.content == want.outputs[0].text
    assert choice.finish_reason == want.outputs[0].finish_reason
    assert choice.token_ids == want.outputs[0].token_ids
    assert got.usage.prompt_tokens == len(want.prompt_token_ids)
    assert got.usage.completion_tokens == len(want.outputs[0].token_ids)
    expected = [
        entry[token].logprob for entry, token in zip(want.outputs[0].logprobs, choice.token_ids, strict=True)
    ]
    assert [entry.logprob for entry in choice.logprobs.content] == expected, "to the last bit"
    for entry, dense in zip(choice.logprobs.content, want.outputs[0].logprobs, strict=True):
        best = sorted((one.logprob for one in dense.values() if one.rank <= 2), reverse=True)
        assert [top.logprob for top in entry.top_logprobs] == best


def test_a_stream_adds_up_to_the_whole_answer(client):
    ask = {"model": "quire", "messages": QUESTION, "temperature": 0, "max_tokens": 40}
    whole = client.chat.completions.create(**ask)
    chunks = list(client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1])
    assert text == whole.choices[0].message.content
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_sampled_answers_do_not_depend_on_company(real, llm):
    prompts = [f"def function_{i}(" for i in range(6)]
    params = {"max_tokens": 16, "temperature": 0.9, "top_p": 0.95}
    alone = [
        llm.generate(prompt, SamplingParams(seed=i, **params))[0].outputs[0].token_ids
        for i, prompt in enumerate(prompts)
    ]

    async def together() -> list[list[int]]:
        async with openai.AsyncOpenAI(
            base_url=real.url + "/v1", api_key="x", max_retries=0, timeout=120
        ) as client:
            answers = await asyncio.gather(
                *[
                    client.completions.create(
                        model="quire", prompt=prompt, seed=i, extra_body={"return_token_ids": True}, **params
                    )
                    for i, prompt in enumerate(prompts)
                ]
            )
        return [answer.choices[0].token_ids for answer in answers]

    assert asyncio.run(together()) == alone


def test_several_choices_best_of_and_beams(client, llm):
    prompt, fields = "import os", {"max_tokens": 12, "temperature": 0.8, "seed": 5}
    want = llm.generate(prompt, SamplingParams(n=3, **fields))[0]
    got = client.completions.create(model="quire", prompt=prompt, n=3, **fields)
    assert [choice.text for choice in got.choices] == [one.text for one in want.outputs]
    want = llm.generate(prompt, SamplingParams(n=1, best_of=3, **fields))[0]
    got = client.completions.create(model="quire", prompt=prompt, best_of=3, **fields)
    assert [choice.text for choice in got.choices] == [one.text for one in want.outputs]
    want = llm.generate(prompt, SamplingParams(n=2, beam_width=3, max_tokens=8))[0]
    got = client.completions.create(
        model="quire", prompt=prompt, n=2, max_tokens=8, extra_body={"beam_width": 3}
    )
    assert [choice.text for choice in got.choices] == [one.text for one in want.outputs]


def test_scoring_a_text_gives_the_engines_prompt_logprobs(client, llm):
    text = "def main() -> None:"
    want = llm.generate(text, SamplingParams(max_tokens=1, prompt_logprobs=1))[0]
    got = client.completions.create(model="quire", prompt=text, echo=True, logprobs=1, max_tokens=0)
    logprobs = got.choices[0].logprobs
    expected = [
        None if entry is None else entry[token].logprob
        for entry, token in zip(want.prompt_logprobs, want.prompt_token_ids, strict=True)
    ]
    assert logprobs.token_logprobs == expected
    assert got.choices[0].text == text


def test_stop_texts_and_the_window(client):
    ask = {"model": "quire", "temperature": 0}
    whole = client.completions.create(prompt="def add(a, b):", max_tokens=24, **ask).choices[0].text
    stop = whole[6:9]
    cut = client.completions.create(prompt="def add(a, b):", max_tokens=24, stop=stop, **ask).choices[0]
    assert cut.text == whole[: whole.index(stop)]
    assert cut.finish_reason == "stop"
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(prompt=[5] * 2048, max_tokens=1, **ask)
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(prompt=[10**6], max_tokens=1, **ask)
    assert (caught.value.code, caught.value.param) == ("invalid_value", "prompt")


def test_a_second_question_reads_the_first_ones_cache(real):
    body = {"prompt": "x = 1\n" * 60, "max_tokens": 1}
    first, second = (real.post("/v1/completions", body).json()["usage"] for _ in range(2))
    assert first["prompt_tokens_details"]["cached_tokens"] <= 1  # the start token, if others asked before
    assert second["prompt_tokens_details"]["cached_tokens"] >= second["prompt_tokens"] - 16
    salted = real.post("/v1/completions", {**body, "cache_salt": "mine"}).json()["usage"]
    assert salted["prompt_tokens_details"]["cached_tokens"] == 0


def test_the_operator_has_the_engine_forget_cached_prefixes(real, operator_socket):
    body = {"prompt": "y = 2\n" * 60, "max_tokens": 1}
    real.post("/v1/completions", body)
    real.until(lambda health: health["requests"] == 0)
    transport = httpx.HTTPTransport(uds=str(operator_socket))
    headers = {"authorization": f"Bearer {OPERATOR_KEY}"}
    with httpx.Client(transport=transport, base_url="http://admin", headers=headers, timeout=60) as admin:
        assert admin.post("/admin/reset_prefix_cache").json()["blocks_freed"] > 0
        again = real.post("/v1/completions", body).json()["usage"]
        assert again["prompt_tokens_details"]["cached_tokens"] == 0


def test_a_client_that_leaves_frees_its_blocks(real):
    body = {"prompt": "while True:", "max_tokens": 1500, "stream": True}
    with real.client.stream("POST", "/v1/completions", json={**body, "ignore_eos": True}) as answer:
        next(answer.iter_lines())
    health = real.until(lambda health: health["requests"] == 0 and health["engine"].get("running") == 0)
    assert health["engine"]["waiting"] == 0


def test_the_chat_command_talks_to_the_server(real):
    done = subprocess.run(
        [sys.executable, "-m", "octavo", "chat", "--url", real.url, "--max-tokens", "12"],
        input="What does os.getcwd do?\n/reset\nWhat does os.getcwd do?\n",
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()[:2]
    assert first == second, "greedy, and the conversation was reset"
    assert "tok/s" in done.stderr


def test_a_killed_engine_comes_back_with_the_same_answers(real, client):
    ask = {"model": "quire", "messages": QUESTION, "temperature": 0, "max_tokens": 16}
    before = client.chat.completions.create(**ask)
    (engine,) = children(real.process.pid)
    restarts = real.health()["engine"]["restarts"]
    os.kill(engine, signal.SIGKILL)
    real.until(lambda health: health["engine"]["restarts"] > restarts and health["status"] == "ready", 120)
    after = client.chat.completions.create(**ask)
    assert after.choices == before.choices
    assert after.system_fingerprint == before.system_fingerprint


PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer", "maximum": 120}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 99}, "b": {"enum": [1, 2]}},
            "required": ["a", "b"],
            "additionalProperties": False,
        },
    },
}
RESUMED: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0},
    "two drawn choices with numbers": {"n": 2, "seed": 9, "temperature": 1.0, "logprobs": True, "top_logprobs": 2},
    "penalties and a stop text": {
        "seed": 4, "temperature": 0.8, "frequency_penalty": 0.5, "presence_penalty": 0.2, "stop": ["the", "\n\n"],
    },
    "a call": {
        "seed": 3, "temperature": 1.0, "tools": [ADD], "tool_choice": "required", "parallel_tool_calls": False,
    },
    "a schema": {
        "seed": 2, "temperature": 0.7,
        "response_format": {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON}},
    },
}  # fmt: skip


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "add"}}])
def test_a_forced_call_is_always_right(client, choice):
    """The model is too small to call anything by itself."""
    for seed in range(3):
        answer = client.chat.completions.create(
            model="quire", messages=QUESTION, tools=[ADD], tool_choice=choice, parallel_tool_calls=False,
            temperature=1.0, seed=seed, max_tokens=100,
        )  # fmt: skip
        (one,) = answer.choices
        assert one.finish_reason == "tool_calls"
        (call,) = one.message.tool_calls
        assert call.function.name == "add"
        jsonschema.validate(json.loads(call.function.arguments), ADD["function"]["parameters"])


@pytest.mark.parametrize("asked", RESUMED)
def test_a_stream_outlives_its_engine_to_the_last_bit(real, client, asked):
    ask = {"model": "quire", "messages": QUESTION, "max_tokens": 48, "stream": True, **RESUMED[asked]}

    def told(kill_after: int | None) -> list[Any]:
        choices: dict[int, list[Any]] = {}
        real.until(lambda health: health["status"] == "ready", 120)
        for number, chunk in enumerate(client.chat.completions.create(**ask)):
            for choice in chunk.choices:
                text, logprobs, ends = choices.setdefault(choice.index, ["", [], []])
                called = [call.function.arguments for call in choice.delta.tool_calls or []]
                choices[choice.index][0] = text + (choice.delta.content or "") + "".join(called)
                logprobs += choice.logprobs.content if choice.logprobs is not None else []
                ends += [choice.finish_reason] if choice.finish_reason else []
            if number == kill_after:
                for pid in children(real.process.pid):
                    os.kill(pid, signal.SIGKILL)
        return [choices[index] for index in sorted(choices)]

    wanted = told(None)
    resumed = real.health()["engine"]["resumed"]
    for cut in (1, 5):
        assert told(cut) == wanted
    assert real.health()["engine"]["resumed"] > resumed, "the engine died while it worked on it"


def test_a_served_process_holds_no_torch(real):
    real.until(lambda health: health["status"] == "ready", 120)

    def has_torch(pid: int) -> bool:
        return "libtorch" in Path(f"/proc/{pid}/maps").read_text()

    assert not has_torch(real.process.pid)
    assert sum(map(has_torch, children(real.process.pid))) == 1, "the engine, and not what compiles grammars"


def test_steps_are_counted_by_their_tokens(real, client):
    before = samples(real)
    client.completions.create(
        model="quire", prompt="import os", max_tokens=3, extra_body={"ignore_eos": True}
    )

    def grown() -> bool:
        return (
            summed(samples(real), "octavo_batch_tokens_count")
            >= summed(before, "octavo_batch_tokens_count") + 3
        )

    real.until(lambda _: grown())
    found = samples(real)
    assert summed(found, "octavo_batch_tokens_count") == summed(found, "octavo_engine_steps_total")
    assert summed(found, "octavo_batch_tokens_sum") == summed(found, "octavo_computed_tokens_total")
    assert summed(found, "octavo_batch_tokens_bucket", le="+Inf") == summed(
        found, "octavo_batch_tokens_count"
    )
    assert summed(found, "octavo_batch_tokens_bucket", le="1.0") > 0


def test_embeddings_are_the_engines_own_to_the_last_bit(client, llm):
    texts = ["What does textwrap.dedent do?", "x", "def f(x):\n    return x\n" * 20]
    got = client.embeddings.create(model="quire", input=texts, encoding_format="float")
    assert [one.embedding for one in got.data] == [one.outputs.embedding for one in llm.embed(texts)]
    assert len({tuple(one.embedding) for one in got.data}) == 3
