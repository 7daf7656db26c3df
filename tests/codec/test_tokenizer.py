"""Reading a model folder: what is found, and what is said when something is missing."""

import json

import pytest
import tokenizers
from tokenizers import decoders, models, processors

from octavo.codec.tokenizer import Tokenizer
from octavo.errors import LoadError, PromptTooLong, RequestError


def write(folder, name, value):
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value))


def test_a_folder_is_read(folder):
    tokenizer = Tokenizer.from_path(folder)
    assert tokenizer.special_tokens == {"bos_token": "<s>", "eos_token": "</s>"}
    assert (tokenizer.bos_id, tokenizer.end_ids, tokenizer.vocab_size) == (0, {1}, 400)
    assert tokenizer.chat_template == "{{ messages[0].content }}"
    assert tokenizer.is_special(2)
    assert not tokenizer.is_special(3)


@pytest.mark.parametrize("add_special_tokens", [True, False])
@pytest.mark.parametrize(
    "config", [{}, {"add_bos_token": True}, {"add_bos_token": False}, {"add_eos_token": True}]
)
@pytest.mark.parametrize("own_rule", [True, False])
def test_begin_and_end_tokens_are_added_as_transformers_does(folder, config, own_rule, add_special_tokens):
    from transformers import PreTrainedTokenizerFast

    raw = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    if own_rule:
        raw.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
        raw.save(str(folder / "tokenizer.json"))
    config = {"bos_token": "<s>", "eos_token": "</s>", **config}
    write(folder, "tokenizer_config.json", config)
    oracle = PreTrainedTokenizerFast.from_pretrained(folder)
    for text in ("The quick", "", "<s>twice", "a</s>b 🙂"):
        got = Tokenizer.from_path(folder).encode(text, add_special_tokens)
        assert got == oracle.encode(text, add_special_tokens=add_special_tokens)


@pytest.mark.parametrize(
    ("files", "want"),
    [
        ({"config.json": {"eos_token_id": 7}}, {1, 7}),
        ({"config.json": {"eos_token_id": 7}, "generation_config.json": {"eos_token_id": [5, 6]}}, {1, 5, 6}),
        ({"config.json": {"text_config": {"eos_token_id": 9}}}, {1, 9}),
        ({"config.json": {}, "generation_config.json": {"eos_token_id": None}}, {1}),
    ],
)
def test_end_ids(folder, files, want):
    for name, value in files.items():
        write(folder, name, value)
    assert Tokenizer.from_path(folder).end_ids == want


def test_special_tokens_map_fills_what_the_config_leaves_out(folder):
    write(folder, "tokenizer_config.json", {"bos_token": "<s>"})
    write(folder, "special_tokens_map.json", {"eos_token": "</s>", "bos_token": "<|user|>"})
    assert Tokenizer.from_path(folder).special_tokens == {"bos_token": "<s>", "eos_token": "</s>"}


@pytest.mark.parametrize(
    ("files", "want"),
    [
        ({"tokenizer_config.json": {"chat_template": "one"}}, {"default": "one"}),
        (
            {
                "tokenizer_config.json": {
                    "chat_template": [
                        {"name": "default", "template": "d"},
                        {"name": "tool_use", "template": "t"},
                    ]
                }
            },
            {"default": "d", "tool_use": "t"},
        ),
        ({"chat_template.json": {"chat_template": "file"}}, {"default": "file"}),
        (
            {"chat_template.json": {"chat_template": "json"}, "chat_template.jinja": "jinja"},
            {"default": "jinja"},
        ),
        ({"additional_chat_templates/rag.jinja": "r"}, {"rag": "r"}),
        ({}, {}),
    ],
)
def test_chat_templates_are_found(folder, files, want):
    write(folder, "tokenizer_config.json", {})
    for name, value in files.items():
        write(folder, name, value)
    tokenizer = Tokenizer.from_path(folder)
    assert tokenizer.chat_templates == want
    assert tokenizer.chat_template == want.get("default")


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("tokenizer.json", None, "tokenizer.json: not found"),
        ("tokenizer.json", "{", "tokenizer.json: not a readable tokenizer"),
        ("tokenizer.json", b"\xff\xfe", "tokenizer.json: not a readable tokenizer"),
        ("tokenizer.json", '{"version": "1.0"}', "tokenizer.json: not a readable tokenizer"),
        ("tokenizer_config.json", "{,}", "tokenizer_config.json: not valid JSON"),
        ("tokenizer_config.json", "[1]", "tokenizer_config.json: expected a JSON object"),
        ("tokenizer_config.json", '{"chat_template": 3}', "chat_template must be"),
        ("special_tokens_map.json", "nope", "special_tokens_map.json: not valid JSON"),
        ("generation_config.json", '{"eos_token_id": "x"}', "generation_config.json: eos_token_id must be"),
        (
            "generation_config.json",
            '{"eos_token_id": [1, -1]}',
            "generation_config.json: eos_token_id must be",
        ),
        ("chat_template.jinja", b"\xff", "chat_template.jinja: not UTF-8"),
    ],
)
def test_a_broken_folder_is_refused_by_file(folder, name, content, says):
    (folder / name).unlink(missing_ok=True)
    if content is not None:
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(LoadError) as error:
        Tokenizer.from_path(folder)
    assert says in str(error.value)
    assert str(folder) in str(error.value)


@pytest.mark.parametrize(
    ("present", "says"),
    [(["tokenizer.model"], "sentencepiece"), (["vocab.json", "merges.txt"], "vocab.json and merges.txt")],
)
def test_older_formats_are_named_with_the_way_out(tmp_path, present, says):
    for name in present:
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(LoadError, match=says) as error:
        Tokenizer.from_path(tmp_path)
    assert "save_pretrained" in str(error.value)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(LoadError, match="no such folder"):
        Tokenizer.from_path(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("decoder", "says"),
    [
        (decoders.WordPiece(), "'WordPiece'"),
        (decoders.CTC(), "'CTC'"),
        (decoders.Sequence([decoders.Fuse(), decoders.Strip(" ", 0, 1)]), "'Strip'"),
        (decoders.Sequence([decoders.Replace(tokenizers.Regex("a+"), "b")]), "plain text pattern"),
    ],
)
def test_a_decoder_that_cannot_stream_is_refused(decoder, says):
    raw = tokenizers.Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    raw.decoder = decoder
    with pytest.raises(LoadError, match=says):
        Tokenizer(raw, where="x/tokenizer.json")


def test_a_giant_prompt_is_refused_before_any_work(folder):
    tokenizer = Tokenizer.from_path(folder)
    assert len(tokenizer.encode("ab", max_chars=2)) > 0
    with pytest.raises(PromptTooLong, match="3 characters, at most 2"):
        tokenizer.encode("abc", max_chars=2)


def test_a_lone_surrogate_is_refused(folder):
    with pytest.raises(RequestError, match="surrogate at character 2"):
        Tokenizer.from_path(folder).encode("ab\ud800")


def test_truncation_and_padding_of_the_file_are_switched_off(folder):
    text = "no silent truncation"
    before = Tokenizer.from_path(folder).encode(text)
    raw = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    raw.enable_truncation(2)
    raw.enable_padding(length=50)
    raw.save(str(folder / "tokenizer.json"))
    assert Tokenizer.from_path(folder).encode(text) == before


def test_the_digest_tells_tokenizers_and_templates_apart(folder, models_by_kind):
    first = Tokenizer.from_path(folder).digest
    assert Tokenizer.from_path(folder).digest == first
    assert len(first) == 32
    write(folder, "chat_template.jinja", "other")
    second = Tokenizer.from_path(folder).digest
    models_by_kind["llama2_bpe"].save(str(folder / "tokenizer.json"))
    assert len({first, second, Tokenizer.from_path(folder).digest}) == 3


def test_special_tokens_are_left_out_unless_asked_for(folder):
    tokenizer = Tokenizer.from_path(folder)
    ids = tokenizer.encode("<s>hi</s>")
    assert tokenizer.decode(ids) == "hi"
    assert tokenizer.decode(ids, skip_special_tokens=False) == "<s>hi</s>"
