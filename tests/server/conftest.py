"""A server with a fake engine, and the tokenizer folder it reads."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from tests.server.process import Served, serving

SPECIAL = ("<bos>", "<end>", "<user>", "<assistant>", "<system>")
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}<end>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level tokenizer, one token per byte, with a chat template."""
    made = tmp_path_factory.mktemp("tokenizer")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    model = tokenizers.Tokenizer(models.BPE({char: i for i, char in enumerate(alphabet)}, []))
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    model.decoder = decoders.ByteLevel()
    model.add_special_tokens(list(SPECIAL))
    model.save(str(made / "tokenizer.json"))
    config = {"bos_token": "<bos>", "eos_token": "<end>", "chat_template": TEMPLATE}
    (made / "tokenizer_config.json").write_text(json.dumps(config))
    return made


@pytest.fixture(scope="session")
def common_server(folder: Path) -> Iterator[Served]:
    with serving([str(folder), "--keep-alive-s", "0.1", "--max-body-bytes", "1MiB"]) as served:
        yield served


@pytest.fixture
def server(common_server: Served) -> Iterator[Served]:
    """One server for all tests that leave it as they found it; the one that costs it its engine is the one to fail."""
    before = common_server.health()["engine"]
    yield common_server
    after = common_server.health()["engine"]
    assert after["restarts"] == before["restarts"], after["last_failure"]


@pytest.fixture
def client(server: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0, timeout=20) as made:
        yield made
