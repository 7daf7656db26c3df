"""/tokenize and /detokenize: there and back, what a conversation renders to, and what is refused."""

from __future__ import annotations

import pytest

from tests.server.test_embeddings import text_ids
from tests.server.test_http import error_of


@pytest.mark.parametrize("path", ["", "/v1"])
def test_a_text_becomes_its_tokens_and_comes_back(server, path):
    got = server.post(f"{path}/tokenize", {"prompt": "to and fro", "model": "fake"}).json()
    assert got["tokens"] == text_ids("to and fro")
    assert got["count"] == len("to and fro")
    assert got["max_model_len"] == server.get("/v1/models/fake").json()["max_model_len"]
    assert "token_strs" not in got
    back = server.post(f"{path}/detokenize", {"tokens": got["tokens"]}).json()
    assert back == {"prompt": "to and fro"}


def test_texts_of_tokens_come_when_asked_for(server):
    got = server.post("/tokenize", {"prompt": "aé", "return_token_strs": True}).json()
    assert got["token_strs"] == ["a", "bytes:\\xc3", "bytes:\\xa9"]


def test_a_conversation_is_what_a_chat_request_reads(server):
    asked = {"messages": [{"role": "user", "content": "hello"}]}
    got = server.post("/tokenize", asked).json()
    chat = server.post("/v1/chat/completions", {**asked, "return_token_ids": True}).json()
    assert got["tokens"] == chat["prompt_token_ids"]
    assert got["count"] == chat["usage"]["prompt_tokens"]
    shorter = server.post("/tokenize", {**asked, "add_generation_prompt": False}).json()
    assert shorter["tokens"] == got["tokens"][: shorter["count"]]
    assert shorter["count"] == got["count"] - 1


@pytest.mark.parametrize(
    ("path", "body", "code", "param"),
    [
        ("/tokenize", {}, "invalid_value", "messages"),
        ("/tokenize", {"prompt": 3}, "invalid_value", "messages"),
        ("/tokenize", {"prompt": "a", "messages": []}, "invalid_value", "messages"),
        ("/tokenize", {"messages": []}, "invalid_value", "messages"),
        ("/tokenize", {"prompt": "a", "model": "other"}, "model_not_found", "model"),
        ("/detokenize", {}, "invalid_value", "tokens"),
        ("/detokenize", {"tokens": [10**6]}, "invalid_value", "tokens"),
        ("/detokenize", {"tokens": [-1]}, "invalid_value", "tokens"),
        ("/detokenize", {"tokens": ["a"]}, "invalid_value", "tokens[0]"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(server, path, body, code, param):
    answer = server.post(path, body)
    assert answer.status_code in (400, 404)
    error = error_of(answer)
    assert (error["code"], error["param"]) == (code, param)
