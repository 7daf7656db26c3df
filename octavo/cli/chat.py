"""Talk to a model in the terminal, with its speed shown after each answer.

    octavo chat                                the bundled model, in this process
    octavo chat --url http://127.0.0.1:8000    a server, with `--api-key KEY` where it wants one

/reset begins a new conversation, /quit (or Ctrl-D) ends; Ctrl-C stops an answer.
"""

from __future__ import annotations

import argparse
import http.client
import json
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from octavo.cli import output, sampling, settings
from octavo.cli.generate import ENGINE
from octavo.cli.main import DONE, FAILED
from octavo.cli.models import check_early
from octavo.core.sequence import SamplingParams
from octavo.errors import ConfigError, OctavoError, RequestError
from octavo.units import format_rate, format_seconds

if TYPE_CHECKING:
    from octavo.engine.llm import LLM

Messages = list[dict[str, str]]
TIMEOUT_S = 600.0


class RemoteError(OctavoError):
    """The server could not be reached, or answered with an error."""

    code = "server_error"


@dataclass(frozen=True, slots=True)
class Piece:
    """Part of an answer. `num_tokens` may be 0 while a character is incomplete."""

    text: str
    num_tokens: int


class Partner(Protocol):
    """Whoever answers."""

    def answer(self, messages: Messages) -> Iterator[Piece]: ...


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", metavar="MODEL", help="directory, hub id, bundled name")
    parser.add_argument("--url", help="a server instead of a model in this process")
    parser.add_argument("--api-key", metavar="KEY", help="for --url")
    parser.add_argument("--system", metavar="TEXT", help="a system message in front")
    output.add_json(parser)
    sampling.add_flags(parser)
    settings.add_flags(parser, ENGINE)


def run(args: argparse.Namespace) -> int:
    params = sampling.read(args)
    if params.n != 1 or params.beam_width is not None:
        raise RequestError("a conversation has one answer at a time: leave --n and --beam-width out")
    found = settings.read(args)
    if args.url is not None:
        _refuse_engine_flags(found)
        key = args.api_key or next(iter(found.server.api_key), None)
        return talk(_Remote(args.url, key, args.model, params, args.knob_seed), args)
    check_early(found.engine.model.model)
    from octavo.engine.llm import LLM

    with LLM.from_config(found.engine) as llm:
        return talk(_Local(llm, params), args)


def _refuse_engine_flags(found: settings.Settings) -> None:
    """Raises ConfigError for a flag that speaks of an engine: the one behind --url is not ours to set up."""
    for name, origin in found.origins.items():
        if origin.kind == "flag" and name not in ("model", "seed"):
            raise ConfigError(f"{origin.where} has no effect with --url; set it where that server is started")


def talk(partner: Partner, args: argparse.Namespace) -> int:
    """Read lines and answer them until the input ends."""
    opening: Messages = [{"role": "system", "content": args.system}] if args.system else []
    messages = list(opening)
    code = DONE
    while (line := _read_line()) is not None:
        if line == "/quit":
            break
        if line == "/reset":
            messages = list(opening)
            continue
        if not line:
            continue
        messages.append({"role": "user", "content": line})
        try:
            text = _say(partner, messages, args.json)
        except OctavoError as error:
            print(f"octavo: {error} [{error.code}]", file=sys.stderr)
            messages.pop()
            code = FAILED
        else:
            messages.append({"role": "assistant", "content": text})
            code = DONE
    return code


def _read_line() -> str | None:
    try:
        return input("> " if sys.stdin.isatty() else "").strip()
    except EOFError:
        return None


def _say(partner: Partner, messages: Messages, as_json: bool) -> str:
    """Print an answer as it comes, then its speed; returns it. Ctrl-C keeps what there is."""
    started_s = time.monotonic()
    first_s = 0.0
    texts: list[str] = []
    num_tokens = 0
    pieces = partner.answer(messages)
    try:
        for piece in pieces:
            if num_tokens == 0 and piece.num_tokens:
                first_s = time.monotonic()
            num_tokens += piece.num_tokens
            texts.append(piece.text)
            if not as_json:
                print(piece.text, end="", flush=True)
    except KeyboardInterrupt:
        close = getattr(pieces, "close", None)
        if close is not None:
            close()
    text = "".join(texts)
    ended_s = time.monotonic()
    speed = (num_tokens - 1) / (ended_s - first_s) if num_tokens > 1 and ended_s > first_s else None
    ttft_s = first_s - started_s if num_tokens else None
    if as_json:
        output.print_json({"text": text, "tokens": num_tokens, "ttft_s": ttft_s, "tokens_per_s": speed})
    else:
        shown = [f"{num_tokens} tokens"]
        shown += [format_rate(speed, "tok")] if speed else []
        shown += [f"first after {format_seconds(ttft_s)}"] if ttft_s is not None else []
        print(flush=True)
        print(f"({', '.join(shown)})", file=sys.stderr)
    return text


class _Local:
    """A model in this process."""

    def __init__(self, llm: LLM, params: SamplingParams) -> None:
        self._llm = llm
        self._params = params

    def answer(self, messages: Messages) -> Iterator[Piece]:
        from octavo.engine.outputs import ChoiceEnded, Delta

        prompt = {"prompt_token_ids": self._llm.chat_token_ids(messages)}
        for update in self._llm.stream(prompt, self._params):
            if isinstance(update, Delta):
                yield Piece(update.text, len(update.token_ids))
            elif isinstance(update, ChoiceEnded) and update.error:
                raise RemoteError(update.error)


class _Remote:
    """A server that speaks /v1/chat/completions."""

    def __init__(
        self, url: str, key: str | None, model: str | None, params: SamplingParams, seed: str | None
    ) -> None:
        self._url = url.rstrip("/").removesuffix("/v1") + "/v1/chat/completions"
        self._key = key
        self._body: dict[str, Any] = {
            "stream": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
            "max_tokens": params.max_tokens,
            "temperature": params.temperature,
            "top_p": params.top_p,
            "presence_penalty": params.presence_penalty,
            "frequency_penalty": params.frequency_penalty,
        }
        extensions = {
            "top_k": params.top_k,
            "min_p": params.min_p,
            "repetition_penalty": params.repetition_penalty,
            "min_tokens": params.min_tokens,
            "ignore_eos": params.ignore_eos,
        }
        plain = SamplingParams()
        self._body |= {name: value for name, value in extensions.items() if value != getattr(plain, name)}
        if seed is not None:
            self._body["seed"] = int(seed)
        if params.stop:
            self._body["stop"] = list(params.stop)
        if model is not None:
            self._body["model"] = model

    def answer(self, messages: Messages) -> Iterator[Piece]:
        counted = 0
        for event in self._events({**self._body, "messages": messages}):
            if "error" in event:
                raise RemoteError(str(event["error"].get("message")))
            usage = event.get("usage") or {}
            total = int(usage.get("completion_tokens", counted))
            text = "".join(choice["delta"].get("content") or "" for choice in event.get("choices", ()))
            if text or total > counted:
                yield Piece(text, total - counted)
            counted = total

    def _events(self, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        headers = {"content-type": "application/json"}
        if self._key:
            headers["authorization"] = f"Bearer {self._key}"
        request = urllib.request.Request(self._url, json.dumps(body).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
                yield from _read_events(answer)
        except urllib.error.HTTPError as error:
            raise RemoteError(_message(error)) from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise RemoteError(f"cannot talk to {self._url}: {error}") from error


def _read_events(answer: Any) -> Iterator[dict[str, Any]]:
    """Events until `[DONE]` or an error event. Raises RemoteError when the stream ends without either."""
    for line in answer:
        if not line.startswith(b"data:"):
            continue
        value = line[5:].strip()
        if value == b"[DONE]":
            return
        event = json.loads(value)
        yield event
        if "error" in event:
            return
    raise RemoteError("the answer was cut off")


def _message(error: urllib.error.HTTPError) -> str:
    """The server's own message where it sent one in the usual shape."""
    text = error.read().decode("utf-8", "replace")
    try:
        return f"{json.loads(text)['error']['message']} (HTTP {error.code})"
    except (ValueError, KeyError, TypeError):
        return f"HTTP {error.code}: {text[:200]}"
