"""Grammars over a vocabulary, token by token: what fits can be walked, what does not is refused somewhere.

Oracles: jsonschema confirms every document of the table; `re` and plain membership judge the other kinds.
"""

from __future__ import annotations

import json
import re
import socket
from typing import Any

import jsonschema
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers

from octavo import bundled
from octavo.codec.grammar import Vocabulary, matcher
from octavo.codec.numbers import NumberTokenizer
from octavo.codec.tokenizer import Tokenizer
from octavo.core.sequence import Grammar
from octavo.errors import GrammarTooComplex, InvalidGrammar, Unsupported
from tests.codec.schemas import CASES, REFUSED

ROWS = 4099
"""Three rows more than the tokenizer has tokens."""


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_path(bundled.path("quire"))


@pytest.fixture(scope="module")
def vocabulary(tokenizer: Tokenizer) -> Vocabulary:
    return Vocabulary(tokenizer, ROWS)


def allowed(mask: bytes) -> set[int]:
    return {8 * i + bit for i, byte in enumerate(mask) if byte for bit in range(8) if byte >> bit & 1}


class Walk:
    """Goes through a grammar by masks alone."""

    def __init__(self, vocabulary: Vocabulary, grammar: Grammar) -> None:
        self.vocabulary = vocabulary
        self.start = matcher(grammar, vocabulary)

    def takes(self, tokens: list[int]) -> bool:
        """Whether every token is in its mask and the output may end after the last."""
        at = self.start.deep_copy()
        for token in tokens:
            if token not in allowed(at.compute_bitmask()):
                return False
            assert at.consume_token(token)
        return self.vocabulary.end in allowed(at.compute_bitmask())


def schema(value: object) -> Grammar:
    return Grammar(kind="json_schema", source=json.dumps(value))


def texts(document: object) -> list[str]:
    """A document the ways people write it."""
    return [
        json.dumps(document, ensure_ascii=False, separators=(",", ":")),
        json.dumps(document, ensure_ascii=False),
        json.dumps(document, ensure_ascii=False, indent=2),
    ]


@pytest.mark.parametrize("name", CASES)
def test_what_fits_can_be_walked_and_what_does_not_cannot(tokenizer, vocabulary, name):
    wanted, good, bad = CASES[name]
    validator = jsonschema.Draft202012Validator(
        wanted, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER
    )
    walk = Walk(vocabulary, schema(wanted))
    for document in good:
        validator.validate(document)
        for text in texts(document):
            assert walk.takes(tokenizer.encode(text, False)), text
    for document in bad:
        assert not validator.is_valid(document)
        for text in texts(document):
            assert not walk.takes(tokenizer.encode(text, False)), text


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_followed_to_the_letter_is_refused_by_name(vocabulary, name, monkeypatch):
    def no_network(*_: object, **__: object) -> None:
        raise AssertionError("a reference was fetched")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    with pytest.raises(InvalidGrammar) as caught:
        matcher(schema(REFUSED[name]), vocabulary)
    assert name in str(caught.value)
    assert caught.value.param == "grammar"


@pytest.mark.parametrize("hint", [{"lenient": True}, {"coerce_one_of": True}, {"whitespace_flexible": False}])
def test_a_schema_cannot_loosen_what_is_checked(vocabulary, hint):
    with pytest.raises(InvalidGrammar):
        matcher(schema({"not": {"type": "integer"}, "x-guidance": hint}), vocabulary)
    with pytest.raises(InvalidGrammar):
        matcher(schema({"oneOf": [{"type": "integer"}, {"type": "number"}], "x-guidance": hint}), vocabulary)


def test_order_is_that_of_the_schema_and_blanks_are_few(tokenizer, vocabulary):
    wanted = {"type": "object", "properties": {"a": {}, "b": {}}, "required": ["a", "b"]}
    walk = Walk(vocabulary, schema(wanted))

    def takes(text: str) -> bool:
        return walk.takes(tokenizer.encode(text, False))

    assert takes('{"a": 1, "b": 2}')
    assert not takes('{"b": 2, "a": 1}')
    assert not takes('{"a":  1, "b": 2}'), "two spaces"
    assert not takes('{"a": 1,\n\n"b": 2}'), "two line ends"
    assert not takes(' {"a": 1, "b": 2}'), "a space in front"
    assert takes('{"a": 1,\n' + " " * 32 + '"b": 2}')
    assert not takes('{"a": 1,\n' + " " * 33 + '"b": 2}')


@pytest.mark.parametrize(
    ("pattern", "good", "bad"),
    [
        (r"[A-F]{2}-\d+", ["AB-1", "FF-007"], ["AB-", "ab-1", "AB-١", "xAB-1"]),
        (r"^(yes|no)$", ["yes", "no"], ["yes ", "maybe"]),
        (r"a/b\.c", ["a/b.c"], ["a/bxc"]),
        (r"(?i)ok", ["ok", "OK", "oK"], ["o"]),
        (r"\w+@\w+\.(com|org)", ["me@here.org"], ["me@here.net", "@x.com"]),
        ("line\nbreak|é+", ["line\nbreak", "éé"], ["line break", "e"]),
        (r'"[^"]*"', ['""', '"a b"'], ['"', "a"]),
    ],
)
def test_regular_expressions_match_the_whole_output(tokenizer, vocabulary, pattern, good, bad):
    walk = Walk(vocabulary, Grammar(kind="regex", source=pattern))
    for text in good:
        assert re.fullmatch(pattern, text)
        assert walk.takes(tokenizer.encode(text, False)), text
    for text in bad:
        assert not walk.takes(tokenizer.encode(text, False)), text


CHOICES = ["yes", "yes and no", "[a-z]+", "a\\b", 'say "hi"\n', "/x/", "ünï 😀", "\t", "$&{}()"]


def test_choices_are_texts_and_nothing_else(tokenizer, vocabulary):
    walk = Walk(vocabulary, Grammar(kind="choice", source=json.dumps(CHOICES)))
    for text in CHOICES:
        assert walk.takes(tokenizer.encode(text, False)), text
    for text in ("yes and", "abc", "ab", 'say "hi"', "x", "aab", ""):
        assert not walk.takes(tokenizer.encode(text, False)), text


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=6), min_size=1, max_size=5), st.data()
)
def test_any_list_of_texts(tokenizer, vocabulary, choices, data):
    walk = Walk(vocabulary, Grammar(kind="choice", source=json.dumps(choices)))
    for text in choices:
        assert walk.takes(tokenizer.encode(text, False))
    other = data.draw(st.text(st.characters(codec="utf-8"), max_size=6))
    assert walk.takes(tokenizer.encode(other, False)) == (other in choices)


@pytest.mark.parametrize(
    "source",
    [
        'start: "SELECT " column (", " column)*\ncolumn: /[a-z]+/',
        'root ::= "SELECT " column (", " column)*\ncolumn ::= [a-z]+',
    ],
    ids=["lark", "gbnf"],
)
def test_both_notations_of_grammars(tokenizer, vocabulary, source):
    walk = Walk(vocabulary, Grammar(kind="lark", source=source))
    assert walk.takes(tokenizer.encode("SELECT a, bc, def", False))
    assert not walk.takes(tokenizer.encode("SELECT ", False))
    assert not walk.takes(tokenizer.encode("SELECT a,b", False))


@pytest.mark.parametrize(
    ("kind", "source", "named"),
    [
        ("json_schema", "{", "not valid JSON"),
        ("json_schema", "[]", "is a JSON object"),
        ("json_schema", "", "is a JSON object"),
        ("json_schema", "false", "cannot be followed"),
        ("regex", "(", "unclosed group"),
        ("regex", r"(?<=a)b", "look-around"),
        ("regex", "", "leaves nothing"),
        ("regex", r"\bword", "lookarounds"),
        ("lark", "start: nobody", "nobody"),
        ("lark", 'start: "a', "cannot"),
        ("lark", "root ::= ((((", "cannot be read"),
        ("lark", "", "cannot"),
        ("choice", "[]", "at least one text"),
        ("choice", "{}", "at least one text"),
        ("choice", "[1]", "every choice is a text"),
        ("choice", '[""]', "every choice is a text"),
        ("choice", "[", "at least one text"),
        ("regex", "a\ud800", "lone surrogate at character 1"),
    ],
)
def test_malformed_ones_say_what_is_wrong_and_spoil_nothing(tokenizer, vocabulary, kind, source, named):
    with pytest.raises(InvalidGrammar, match=re.escape(named)):
        matcher(Grammar(kind=kind, source=source), vocabulary)
    assert Walk(vocabulary, Grammar(kind="regex", source="ab")).takes(tokenizer.encode("ab", False))


@pytest.mark.parametrize(
    "grammar",
    [
        Grammar(kind="regex", source="a" * (512 * 1024 + 1)),
        Grammar(kind="choice", source=json.dumps([str(i) for i in range(10_001)])),
        Grammar(kind="regex", source="(a|b|ab)*" * 500),
        Grammar(kind="json_schema", source='{"anyOf":[' * 5000 + "true" + "]}" * 5000),
    ],
    ids=["long", "many choices", "much to derive", "deep"],
)
def test_what_is_too_much_is_refused_as_such(vocabulary, grammar):
    with pytest.raises(GrammarTooComplex):
        matcher(grammar, vocabulary)


# ---- the vocabulary


def test_only_text_is_ever_allowed(tokenizer, vocabulary):
    """Special and end tokens, rows past the tokenizer: in no mask, whatever the grammar lets through."""
    textless = {t for t in range(ROWS) if not tokenizer.token_bytes(t) or tokenizer.is_special(t)}
    assert textless >= tokenizer.end_ids | {4096, 4097, 4098}
    for source in ("(?s:.)+", "<|im_end|>|<[|a-z_]+>"):
        at = matcher(Grammar(kind="regex", source=source), vocabulary)
        for token in tokenizer.encode("<|im", False):
            mask = allowed(at.compute_bitmask())
            assert mask
            assert not mask & textless
            at.consume_token(token)


def odd_tokenizer() -> Tokenizer:
    """Sentencepiece's way: "▁" for a space and one in front of every text; added tokens that hold JSON."""
    pieces = ["<unk>", "<s>", "</s>", "▁", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += [*'{}[]:,"abcxyz0123456789', "▁a", "▁{", '":', "ab"]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    model = tokenizers.Tokenizer(
        models.BPE(vocab, [("▁", "a"), ("▁", "{"), ('"', ":"), ("a", "b")], byte_fallback=True)
    )
    model.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    model.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    model.add_special_tokens(["<s>", "</s>"])
    model.add_tokens(['{"', "<tool>"])
    return Tokenizer(model, special_tokens={"eos_token": "</s>", "bos_token": "<s>"})


def test_tokens_are_what_the_text_says_they_are():
    """Every way to write a document out of tokens is allowed, tokens that were added later included."""
    made = odd_tokenizer()
    size = made.vocab_size + 5
    vocabulary = Vocabulary(made, size)
    ids = {made.token_bytes(t): t for t in range(size) if made.token_bytes(t) and not made.is_special(t)}
    walk = Walk(
        vocabulary, schema({"type": "object", "properties": {"ab": {"type": "integer"}}, "required": ["ab"]})
    )
    for parts in (
        [b'{"', b"ab", b'":', b"1", b"}"],
        [b"{", b'"', b"a", b"b", b'"', b":", b" ", b"2", b"}"],
    ):
        tokens = [ids[part] for part in parts]
        at = walk.start.deep_copy()
        for token in tokens:  # forced text has one spelling, so the others need not be in the mask
            assert at.consume_token(token)
        assert at.is_accepting()
        assert json.loads(made.decode(tokens)) in ({"ab": 1}, {"ab": 2})
    assert ids[b" {"] not in allowed(walk.start.compute_bitmask()), "its text would begin with a space"


def test_a_model_without_text_has_no_grammars():
    with pytest.raises(Unsupported, match="without a tokenizer"):
        Vocabulary(NumberTokenizer(50), 50)


def test_a_spelling_is_the_tokenizers_own_where_that_gives_the_same_bytes(tokenizer, vocabulary):
    for text in ('{"name": "', "return None", "é"):
        assert vocabulary._spelling(text) == tokenizer.encode(text, False)
    made = odd_tokenizer()
    rows: Any = [b"" if made.is_special(t) else made.token_bytes(t) for t in range(made.vocab_size)]
    spelled = Vocabulary(made, made.vocab_size)._spelling('{"ab":1<s>')
    assert b"".join(rows[t] for t in spelled) == b'{"ab":1<s>'
