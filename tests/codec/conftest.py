"""Small tokenizers of the kinds language models ship, trained here."""

from __future__ import annotations

import json

import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

TEXTS = [
    "The quick brown fox jumps over the lazy dog. ",
    "def dedent(text):\n    return text  # comment\n",
    "größer naïve café 東京は日本の首都です。 Привет, мир!",
    "🙂🙃 emoji 👩‍👩‍👧 and  double  spaces",
] * 3

SPECIALS = ["<s>", "</s>", "<|user|>"]


def byte_level(vocab_size=400):
    model = tokenizers.Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=SPECIALS,
        show_progress=False,
    )
    model.train_from_iterator(TEXTS, trainer)
    return model


def llama2_bpe(vocab_size=420):
    """Sentencepiece-style BPE: spaces as marks, unknown characters as byte tokens, one leading space dropped."""
    model = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    model.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    model.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    bytes_ = [f"<0x{i:02X}>" for i in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<unk>", *SPECIALS, *bytes_],
        limit_alphabet=40,
        show_progress=False,
    )
    model.train_from_iterator([text.replace(" ", "▁") for text in TEXTS], trainer)
    return _with_plain_tokens(model, bytes_)


def metaspace_unigram(vocab_size=420, prepend_scheme="always"):
    model = tokenizers.Tokenizer(models.Unigram())
    model.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend_scheme)
    model.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Metaspace(prepend_scheme=prepend_scheme)]
    )
    bytes_ = [f"<0x{i:02X}>" for i in range(256)]
    trainer = trainers.UnigramTrainer(
        vocab_size=vocab_size,
        special_tokens=["<unk>", *SPECIALS, *bytes_],
        unk_token="<unk>",
        show_progress=False,
    )
    model.train_from_iterator(TEXTS, trainer)
    definition = json.loads(model.to_str())
    definition["model"]["byte_fallback"] = True
    return _with_plain_tokens(tokenizers.Tokenizer.from_str(json.dumps(definition)), bytes_)


def _with_plain_tokens(model, names):
    """The trainer registers the byte tokens as special; in real files they are plain entries of the vocabulary."""
    definition = json.loads(model.to_str())
    definition["added_tokens"] = [t for t in definition["added_tokens"] if t["content"] not in names]
    return tokenizers.Tokenizer.from_str(json.dumps(definition))


def word_level():
    words = ["<s>", "</s>", "<|user|>", "one", "two", "three"]
    return tokenizers.Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<s>"))


BUILDERS = {
    "byte_level": byte_level,
    "llama2_bpe": llama2_bpe,
    "metaspace_unigram": metaspace_unigram,
    "metaspace_never": lambda: metaspace_unigram(prepend_scheme="never"),
    "word_level": word_level,
}


@pytest.fixture(scope="session")
def models_by_kind():
    return {kind: build() for kind, build in BUILDERS.items()}


@pytest.fixture(scope="session", params=BUILDERS)
def raw(request, models_by_kind):
    """The library's own tokenizer, one of each kind."""
    return models_by_kind[request.param]


@pytest.fixture
def folder(tmp_path, models_by_kind):
    """A model folder as they are downloaded."""
    models_by_kind["byte_level"].save(str(tmp_path / "tokenizer.json"))
    config = {
        "bos_token": "<s>",
        "eos_token": {"content": "</s>"},
        "chat_template": "{{ messages[0].content }}",
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 1}))
    return tmp_path
