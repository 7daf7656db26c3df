"""/v1/embeddings: the official client, the four forms of input, both encodings, and what is refused."""

from __future__ import annotations

import base64
import math
from array import array

import pytest

from tests.server.fake_engine import HIDDEN, embedding_of
from tests.server.test_http import error_of


def vector(text: str) -> list[float]:
    return array("f", embedding_of(tuple(text_ids(text)))).tolist()


def text_ids(text: str) -> list[int]:
    """The test tokenizer has one token per byte, in the order of the byte-level alphabet."""
    from tokenizers import pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    return [alphabet.index("Ġ" if char == " " else char) for char in text]


@pytest.mark.parametrize("form", ["text", "texts", "ids", "lists of ids"])
@pytest.mark.parametrize("encoding", ["float", "base64", None])
def test_the_official_client_in_every_form(client, form, encoding):
    texts = ["one text"] if form in ("text", "ids") else ["b", "another one", "b", "c"]
    given = {
        "text": texts[0],
        "texts": texts,
        "ids": text_ids(texts[0]),
        "lists of ids": [text_ids(text) for text in texts],
    }[form]
    extra = {} if encoding is None else {"encoding_format": encoding}
    got = client.embeddings.create(model="fake", input=given, user="somebody", **extra)
    assert [one.index for one in got.data] == list(range(len(texts)))
    for one, text in zip(got.data, texts, strict=True):
        values = one.embedding
        if isinstance(values, str):
            values = array("f", base64.b64decode(values)).tolist()
        assert list(values) == pytest.approx(vector(text), abs=1e-7)
    assert got.usage.prompt_tokens == got.usage.total_tokens == sum(map(len, texts))
    assert got.model == "fake"


def test_base64_is_the_same_numbers(server):
    ask = {"input": ["x", "yz"]}
    plain = server.post("/v1/embeddings", ask).json()
    packed = server.post("/v1/embeddings", {**ask, "encoding_format": "base64"}).json()
    for one, other in zip(plain["data"], packed["data"], strict=True):
        assert array("f", one["embedding"]).tobytes() == base64.b64decode(other["embedding"])
    assert {**plain, "data": None} == {**packed, "data": None}


@pytest.mark.parametrize("dimensions", range(1, HIDDEN + 1))
def test_fewer_dimensions_are_the_first_ones_at_length_one(server, dimensions):
    full = vector("abc")
    body = {"input": "abc", "dimensions": dimensions}
    got = server.post("/v1/embeddings", body).json()["data"][0]["embedding"]
    length = math.hypot(*full[:dimensions])
    assert got == pytest.approx([value / length for value in full[:dimensions]], abs=1e-6)
    assert math.hypot(*got) == pytest.approx(1.0, abs=1e-6)


def test_the_model_card_says_what_an_embedding_is(server):
    card = server.get("/v1/models").json()["data"][0]
    assert card["embeddings"]["dimensions"] == HIDDEN
    assert card["embeddings"]["pooling"].startswith("mean of the final hidden states")
    assert card["embeddings"]["normalized"] is True


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": [[]]}, "input"),
        ({"input": ["a", ""]}, "input"),
        ({"input": ["a", 1]}, "input"),
        ({"input": [-1]}, "input"),
        ({"input": [2**40]}, "input"),
        ({"input": 5}, "input"),
        ({"input": ["a"] * 2049}, "input"),
        ({"input": "a", "dimensions": 0}, "dimensions"),
        ({"input": "a", "dimensions": HIDDEN + 1}, "dimensions"),
        ({"input": "a", "dimensions": True}, "dimensions"),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format"),
        ({"input": "a", "model": "other"}, "model"),
        ({}, "input"),
    ],
)
def test_what_is_refused_names_its_field(server, more, param):
    answer = server.post("/v1/embeddings", more)
    assert answer.status_code == (404 if "model" in more else 400)
    assert error_of(answer)["param"] == param


def test_an_input_that_is_too_long_is_refused_as_a_whole(server):
    answer = server.post("/v1/embeddings", {"input": ["a", "!refuse", "b"]})
    assert (answer.status_code, error_of(answer)["code"]) == (400, "context_length_exceeded")
    server.until(lambda health: health["engine"]["running"] == 0)


def test_fields_without_effect_are_named(server):
    answer = server.post("/v1/embeddings", {"input": "a", "task": "query", "metadata": {}})
    assert answer.headers["x-octavo-warning"] == "without effect: task"


def test_errors_about_the_inputs_name_the_field_they_came_in(server):
    long = server.post("/v1/embeddings", {"input": "x" * 5000})
    assert (long.status_code, error_of(long)["code"]) == (400, "context_length_exceeded")
    assert error_of(long)["param"] == "input"
    many = server.post("/v1/embeddings", {"input": ["x"] * 600})
    assert (many.status_code, error_of(many)["param"]) == (400, "input")
    chat = {"messages": [{"role": "user", "content": "x" * 5000}]}
    assert error_of(server.post("/v1/chat/completions", chat))["param"] == "messages"
