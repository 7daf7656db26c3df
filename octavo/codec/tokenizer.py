"""Text to token ids and back, from the files of a model folder."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import tokenizers

from octavo.codec.detokenize import Detokenizer
from octavo.codec.pieces import rule_for
from octavo.errors import LoadError, PromptTooLong, RequestError

MAX_CHARS = 8 * 2**20

_SURROGATE = re.compile("[\ud800-\udfff]")
_SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class Tokenizer:
    """One model's tokenizer, with what else its folder says about text.

    vocab_size      ids run from 0 to vocab_size - 1; a model may have more rows, which stand for nothing
    bos_id          put before a prompt by `encode`, where the model wants one; None when it has none
    end_ids         ids that end an answer: those of generation_config.json, else of config.json, and the
                    tokenizer's own end token
    special_tokens  names to texts ("bos_token": "<s>"), the variables chat templates use
    chat_templates  names to templates; "default" is `chat_template`
    digest          SHA-256 of everything here that shapes tokens and prompts
    """

    def __init__(
        self,
        model: tokenizers.Tokenizer,
        *,
        special_tokens: Mapping[str, str] | None = None,
        end_ids: Iterable[int] = (),
        chat_templates: Mapping[str, str] | None = None,
        where: str = "tokenizer",
    ) -> None:
        """`model` belongs to this object from here on. Raises LoadError for a decoder it cannot follow."""
        model.no_truncation()
        model.no_padding()
        self._model = model
        definition = model.to_str()
        self.rule = rule_for(json.loads(definition).get("decoder"), where)
        self.special_tokens = dict(special_tokens or {})
        self.chat_templates = dict(chat_templates or {})
        self.chat_template = self.chat_templates.get("default")
        self.vocab_size = 1 + max(model.get_vocab(with_added_tokens=True).values(), default=-1)
        self.bos_id = self._id_of("bos_token")
        own_end = self._id_of("eos_token")
        self.end_ids = frozenset(end_ids) | (frozenset() if own_end is None else {own_end})
        self._special_ids = frozenset(i for i, t in model.get_added_tokens_decoder().items() if t.special)
        self._pieces: list[str | None] = [model.id_to_token(i) for i in range(self.vocab_size)]
        shaping = [definition, self.special_tokens, self.chat_templates, sorted(self.end_ids)]
        self.digest = hashlib.sha256(json.dumps(shaping, sort_keys=True).encode()).digest()

    @classmethod
    def from_path(cls, path: str | Path) -> Tokenizer:
        """Reads a folder in Hugging Face layout. Raises LoadError naming the file and what mends it."""
        folder = Path(path)
        config = _json_object(folder / "tokenizer_config.json")
        model = _read_model(folder)
        special_tokens = _special_tokens(_json_object(folder / "special_tokens_map.json") | config)
        return cls(
            model,
            special_tokens=special_tokens,
            end_ids=_end_ids(folder),
            chat_templates=_chat_templates(folder, config),
            where=str(folder / "tokenizer.json"),
        )

    def encode(self, text: str, add_special_tokens: bool = True, *, max_chars: int = MAX_CHARS) -> list[int]:
        """Token ids of a text.

        add_special_tokens  add the begin token, and whatever else tokenizer.json asks for (`add_bos_token` in
                            tokenizer_config.json has no say beside it); False for a rendered chat, whose
                            template writes them itself
        max_chars           a longer text is refused before any work is done on it
        Raises PromptTooLong, and RequestError for text with lone surrogates, which is not Unicode.
        """
        if len(text) > max_chars:
            raise PromptTooLong(
                f"the prompt has {len(text)} characters, at most {max_chars} are read; shorten it",
                param="prompt",
            )
        surrogate = _SURROGATE.search(text)
        if surrogate:
            raise RequestError(
                f"the prompt holds a lone surrogate at character {surrogate.start()}; send valid Unicode",
                param="prompt",
            )
        # Of the library's calls this one alone lets other threads run meanwhile, and it keeps no offsets.
        (found,) = self._model.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        return list(found.ids)

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """Text of token ids, all at once; the same text a `Detokenizer` gives out piece by piece.

        Ids that stand for nothing are passed over. No spaces are tidied away.
        """
        detokenizer = Detokenizer(self, skip_special_tokens)
        return "".join([*map(detokenizer.push, ids), detokenizer.flush()])

    def token_bytes(self, token_id: int) -> bytes:
        """Bytes that the token adds to a text already begun; b"" for an id that stands for nothing."""
        piece = self.piece(token_id)
        return b"" if piece is None else self.rule.to_bytes(piece)

    def piece(self, token_id: int) -> str | None:
        """The token's text in the vocabulary; None when the id stands for nothing."""
        return self._pieces[token_id] if 0 <= token_id < self.vocab_size else None

    def is_special(self, token_id: int) -> bool:
        """Whether the token marks structure (begin, end, role ...) rather than text."""
        return token_id in self._special_ids

    def token_id(self, piece: str) -> int | None:
        """The id of the token with this name, or None where there is none."""
        token: int | None = self._model.token_to_id(piece)
        return token

    def _id_of(self, name: str) -> int | None:
        text = self.special_tokens.get(name)
        return None if text is None else self._model.token_to_id(text)


def _read_model(folder: Path) -> tokenizers.Tokenizer:
    path = folder / "tokenizer.json"
    if not folder.is_dir():
        raise LoadError(f"{folder}: no such folder; give a model folder in Hugging Face layout")
    if not path.is_file():
        if (folder / "tokenizer.model").is_file():
            raise LoadError(
                f"{folder}: found only tokenizer.model (sentencepiece), tokenizer.json is needed; make one "
                "with transformers: AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
            )
        if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
            raise LoadError(
                f"{folder}: found only vocab.json and merges.txt, tokenizer.json is needed; make one "
                "with transformers: AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
            )
        raise LoadError(f"{path}: not found; copy the tokenizer.json of the model there")
    try:
        return tokenizers.Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except Exception as error:  # the library raises plain Exception for whatever it cannot read
        raise LoadError(f"{path}: not a readable tokenizer ({error}); fetch the file again") from error


def _json_object(path: Path) -> dict[str, object]:
    """The object in a JSON file, {} when there is no such file."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise LoadError(f"{path}: not valid JSON ({error}); fetch the file again") from error
    if not isinstance(value, dict):
        raise LoadError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def _special_tokens(config: Mapping[str, object]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name in _SPECIAL_NAMES:
        value = config.get(name)
        if isinstance(value, dict):
            value = value.get("content")
        if isinstance(value, str):
            found[name] = value
    return found


def _end_ids(folder: Path) -> frozenset[int]:
    for name in ("generation_config.json", "config.json"):
        config = _json_object(folder / name)
        text_config = config.get("text_config")
        value = config.get("eos_token_id")
        if value is None and isinstance(text_config, dict):
            value = text_config.get("eos_token_id")
        if value is None:
            continue
        ids = value if isinstance(value, list) else [value]
        if any(isinstance(i, bool) or not isinstance(i, int) or i < 0 for i in ids):
            raise LoadError(
                f"{folder / name}: eos_token_id must be a token id or a list of them, found {value!r}"
            )
        return frozenset(ids)
    return frozenset()


def _chat_templates(folder: Path, config: Mapping[str, object]) -> dict[str, str]:
    """A chat_template.jinja goes before chat_template.json, and that before tokenizer_config.json."""
    found: dict[str, str] = {}
    for where, value in (
        ("tokenizer_config.json", config.get("chat_template")),
        ("chat_template.json", _json_object(folder / "chat_template.json").get("chat_template")),
    ):
        if isinstance(value, str):
            found["default"] = value
        elif isinstance(value, list):
            found |= {str(item["name"]): str(item["template"]) for item in value if _is_named_template(item)}
        elif value is not None:
            raise LoadError(
                f"{folder / where}: chat_template must be a text or a list of named ones, found {value!r}"
            )
    paths = [folder / "chat_template.jinja", *sorted((folder / "additional_chat_templates").glob("*.jinja"))]
    for path in paths:
        if path.is_file():
            name = "default" if path.name == "chat_template.jinja" else path.stem
            try:
                found[name] = path.read_text(encoding="utf-8")
            except UnicodeDecodeError as error:
                raise LoadError(f"{path}: not UTF-8 ({error}); fetch the file again") from error
    return found


def _is_named_template(item: object) -> bool:
    return (
        isinstance(item, dict) and isinstance(item.get("name"), str) and isinstance(item.get("template"), str)
    )
