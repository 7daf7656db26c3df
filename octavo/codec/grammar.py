"""What an output can be held to, made ready for one vocabulary by llguidance. Without tensors.

The text of a grammar is checked here and nowhere else: whatever llguidance would pass over is an error, and no
reference is ever fetched. Its limits keep one mask within milliseconds.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import llguidance
from llguidance.gbnf_to_lark import any_to_lark

from octavo.codec.numbers import NumberTokenizer
from octavo.codec.tokenizer import Tokenizer
from octavo.core.sequence import Grammar
from octavo.errors import GrammarTooComplex, InvalidGrammar, Unsupported

MAX_SOURCE_CHARS = 512 * 1024
MAX_CHOICES = 10_000
MAX_LEXER_STATES = 50_000
"""Of one compiled grammar, about 2 kB each; they are made as texts need them and shared by all who follow it."""

JSON_OPTIONS: Any = {
    "whitespace_flexible": True,
    "whitespace_pattern": r"([ ]|\n[ \t]{0,32})",
    "lenient": False,
    "coerce_one_of": False,
}
"""Between two JSON tokens: nothing, one space, or a line end and its indentation. A model that is unsure cannot write
blanks until its tokens are spent. These go over whatever `x-guidance` in a schema says."""

_TOO_MUCH = re.compile(r"too (?:big|large|complex|deep|many)|limit|fuel|TooComplex|exceed", re.IGNORECASE)
_UNIMPLEMENTED = re.compile(r"Unimplemented keys: (\[.*\])")
_PLACE = re.compile(r"^at \d+\(\d+\): |\n\s+\d+ \| (?s:.)*")
_EMPTY = "the {kind} leaves nothing to be written; give one that at least one text satisfies"


class Vocabulary:
    """A model's tokens as llguidance reads them; made once per model.

    size  rows of the model's head. Rows that stand for no text, and end tokens, never belong to a grammar
    end   the id, one past the last row, whose bit in a mask says that the output may end here

    Raises Unsupported for a model without a tokenizer.
    """

    def __init__(self, tokenizer: Tokenizer, size: int) -> None:
        if isinstance(tokenizer, NumberTokenizer):
            raise Unsupported(
                "this model came without a tokenizer, so there is no text that a grammar could be about",
                param="grammar",
            )
        self.size = size
        self.end = size
        rows: list[bytes] = []
        special = [self.end]
        for token in range(size):
            is_special = tokenizer.is_special(token)
            if token in tokenizer.end_ids:
                rows.append(b"")
            elif is_special:
                special.append(token)
                rows.append((tokenizer.piece(token) or "").encode())
            else:
                rows.append(tokenizer.token_bytes(token))
        plain = [b"" if token in set(special) else row for token, row in enumerate(rows)]
        self._spelling = _Spelling(tokenizer, plain)
        self.table = llguidance.LLTokenizer(_View([*rows, b"<end of output>"], special, self._spelling))


class _View(llguidance.TokenizerWrapper):
    """What llguidance asks of a tokenizer, by the names it asks for."""

    def __init__(self, tokens: list[bytes], special: list[int], spell: Callable[[str], list[int]]) -> None:
        self.is_tokenizer_wrapper = True
        self.bos_token_id = None
        self.tokens = tokens
        self.special_token_ids = special
        self.eos_token_id = len(tokens) - 1
        self._spell = spell

    def __call__(self, text: str) -> list[int]:
        return self._spell(text)


class _Spelling:
    """How a text that the grammar leaves no choice about is cut into tokens: as the model is used to see it.

    Tokenizers that add a space in front or know special tokens by their names would give other bytes than the
    text has; such a text is spelled by the longest tokens that fit.
    """

    def __init__(self, tokenizer: Tokenizer, rows: list[bytes]) -> None:
        self._tokenizer = tokenizer
        self._rows = rows
        self._ids: dict[bytes, int] = {}
        for token, row in enumerate(rows):
            if row:
                self._ids.setdefault(row, token)
        self._longest = max(map(len, self._ids), default=0)

    def __call__(self, text: str) -> list[int]:
        wanted = text.encode()
        ids = self._tokenizer.encode(text, add_special_tokens=False)
        if (
            all(token < len(self._rows) for token in ids)
            and b"".join(map(self._rows.__getitem__, ids)) == wanted
        ):
            return ids
        return self._greedy(wanted)

    def _greedy(self, text: bytes) -> list[int]:
        """Stops short of a byte that no token has."""
        ids, start = [], 0
        while start < len(text):
            for end in range(min(len(text), start + self._longest), start, -1):
                token = self._ids.get(text[start:end])
                if token is not None:
                    ids.append(token)
                    start = end
                    break
            else:
                break
        return ids


def matcher(grammar: Grammar, vocabulary: Vocabulary) -> llguidance.LLMatcher:
    """A matcher at the beginning of an output.

    Raises InvalidGrammar, which says what is wrong, and GrammarTooComplex.
    """
    if len(grammar.source) > MAX_SOURCE_CHARS:
        raise GrammarTooComplex(
            f"the {_NAMES[grammar.kind]} has {len(grammar.source)} characters, at most {MAX_SOURCE_CHARS} are read",
            param="grammar",
        )
    try:
        grammar.source.encode()
    except UnicodeEncodeError as error:
        raise InvalidGrammar(
            f"the {_NAMES[grammar.kind]} holds a lone surrogate at character {error.start}; send valid Unicode",
            param="grammar",
        ) from None
    made = llguidance.LLMatcher(vocabulary.table, _definition(grammar), log_level=0, limits=_limits())
    problems = [made.get_error()] if made.is_error() else made.get_grammar_warnings()
    if problems:
        raise _refused(grammar, problems[0])
    mask = made.compute_bitmask()
    if made.is_error():
        problem = made.get_error()
        if problem.startswith("NoExtension"):
            raise InvalidGrammar(_EMPTY.format(kind=_NAMES[grammar.kind]), param="grammar")
        raise _refused(grammar, problem)
    if not int.from_bytes(mask, "little") & ((1 << vocabulary.size) - 1):
        raise InvalidGrammar(_EMPTY.format(kind=_NAMES[grammar.kind]), param="grammar")
    return made


_NAMES = {
    "json_schema": "JSON schema",
    "json_object": "JSON object",
    "regex": "regular expression",
    "choice": "list of choices",
    "lark": "grammar",
    "calls": "tools' parameters",
}


def _limits() -> llguidance.LLParserLimits:
    return llguidance.LLParserLimits(max_lexer_states=MAX_LEXER_STATES, verbose_errors=False)


def _definition(grammar: Grammar) -> str:
    """The grammar as llguidance has it. Raises InvalidGrammar for what is wrong on the surface."""
    match grammar.kind:
        case "json_object":
            return _json_schema('{"type": "object"}')
        case "json_schema":
            return _json_schema(grammar.source)
        case "regex":
            return _regex(grammar.source)
        case "choice":
            return _regex("|".join(map(_literal, _choices(grammar.source))))
        case "calls":
            return llguidance.LLMatcher.grammar_from_lark(grammar.source)
        case _:
            return _lark(grammar.source)


def _json_schema(source: str) -> str:
    text = source.strip()
    text = {"true": "{}", "false": '{"enum": []}'}.get(text, text)  # options need an object to be put in
    if not text.startswith("{"):
        raise InvalidGrammar("a JSON schema is a JSON object, or true", param="grammar")
    try:
        return llguidance.LLMatcher.grammar_from_json_schema(text, overrides=JSON_OPTIONS)
    except ValueError as error:
        problem = _one_line(str(error))
        if _TOO_MUCH.search(problem):
            raise GrammarTooComplex(
                f"the JSON schema is nested too deeply: {problem}", param="grammar"
            ) from None
        raise InvalidGrammar(f"the JSON schema is not valid JSON: {problem}", param="grammar") from None


def _regex(source: str) -> str:
    r"""The whole output matches. `\d` and `\w` are ASCII's, as in JSON schemas."""
    return llguidance.LLMatcher.grammar_from_lark(f"start: /{llguidance.regex_to_lark(source, 'dw')}/")


def _choices(source: str) -> list[str]:
    try:
        choices = json.loads(source)
    except (ValueError, RecursionError):
        choices = None
    if not isinstance(choices, list) or not choices:
        raise InvalidGrammar("the choices are a list of at least one text", param="grammar")
    if any(not isinstance(choice, str) or not choice for choice in choices):
        raise InvalidGrammar("every choice is a text of at least one character", param="grammar")
    if len(choices) > MAX_CHOICES:
        raise GrammarTooComplex(
            f"{len(choices)} choices were given, at most {MAX_CHOICES} are followed", param="grammar"
        )
    return choices


def _literal(text: str) -> str:
    """A regular expression for just this text."""
    return "".join(char if char.isascii() and char.isalnum() else f"\\u{{{ord(char):X}}}" for char in text)


def _lark(source: str) -> str:
    """Lark's notation as it is; the `::=` notation of GBNF rewritten."""
    try:
        return llguidance.LLMatcher.grammar_from_lark(any_to_lark(source))
    except RecursionError:
        raise GrammarTooComplex("the grammar is nested too deeply", param="grammar") from None
    except Exception as error:  # the converter raises plain Exception for whatever it cannot read
        raise InvalidGrammar(
            f"the grammar cannot be read: {_one_line(str(error))}", param="grammar"
        ) from None


def _refused(grammar: Grammar, problem: str) -> InvalidGrammar | GrammarTooComplex:
    name = _NAMES[grammar.kind]
    if unimplemented := _UNIMPLEMENTED.search(problem):
        keys = ", ".join(json.loads(unimplemented[1]))
        return InvalidGrammar(
            f"the {name} uses {keys}, which cannot be followed; leave it out", param="grammar"
        )
    if _TOO_MUCH.search(problem):
        problem = problem.partition("; either increase")[0]
        return GrammarTooComplex(f"the {name} is too complex: {_one_line(problem)}", param="grammar")
    if grammar.kind != "lark":  # which alone has lines of its own
        problem = _PLACE.sub("", problem)
    return InvalidGrammar(f"the {name} cannot be followed: {_one_line(problem)}", param="grammar")


def _one_line(text: str) -> str:
    text = " ".join(text.removesuffix("<non-verbose/>").split())
    return text if len(text) <= 300 else text[:300] + " ..."
