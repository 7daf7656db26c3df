"""Answer one prompt, or a file of them.

    octavo generate "def fibonacci(n):"            the bundled model goes on from there
    octavo generate --chat "What does os.sep do?"  through the model's chat template
    octavo generate MODEL "Once upon a time"
    octavo generate MODEL --input prompts.jsonl --output out.jsonl

A lone argument is a model when it names one (a bundled name, a path, or owner/name), and a prompt otherwise.
Each input line is an object with "prompt" (text), "prompt_token_ids" or "messages", and sampling fields if it
wants others than the flags; each output line holds the "index" of its input line, from 0, in the same order.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from octavo.cli import output, progress, results, sampling, settings
from octavo.cli.main import DONE, FAILED
from octavo.cli.models import check_early
from octavo.core.sequence import SamplingParams
from octavo.errors import ConfigError, RequestError

if TYPE_CHECKING:
    from octavo.config import EngineConfig
    from octavo.engine.llm import LLM
    from octavo.engine.outputs import RequestOutput
    from octavo.engine.service import AsyncLLM

ENGINE = ("model", "kv", "scheduler", "runtime")
IN_FLIGHT = 2
"""Requests kept at the engine, in multiples of max_num_seqs: enough that it never waits for the file."""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "arguments", nargs="*", metavar="MODEL PROMPT", help="both may be left out, see above"
    )
    parser.add_argument("--chat", action="store_true", help="send the prompt as a user message")
    parser.add_argument("--input", metavar="IN.jsonl", help="prompts, one object per line")
    parser.add_argument("--output", metavar="OUT.jsonl", help="answers, one object per line")
    output.add_json(parser)
    sampling.add_flags(parser)
    settings.add_flags(parser, ENGINE)


def run(args: argparse.Namespace) -> int:
    args.model, prompt = split_arguments(args.arguments, is_file=args.input is not None)
    params = sampling.read(args)
    config = settings.read(args).engine
    if args.input is None and args.output is not None:
        raise ConfigError("--output goes with --input; a single answer goes to standard output")
    if args.input is not None:
        if prompt is not None:
            raise ConfigError("give a prompt or --input, not both")
        if args.output is None:
            raise ConfigError("--input needs --output OUT.jsonl")
        check_early(config.model.model)
        return asyncio.run(_run_file(config, args, params))
    check_early(config.model.model)
    if prompt is None:
        if sys.stdin.isatty():
            raise ConfigError('no prompt: `octavo generate "TEXT"`, or pipe one in')
        prompt = sys.stdin.read()
    return _run_one(config, args, params, prompt)


def split_arguments(arguments: list[str], *, is_file: bool) -> tuple[str | None, str | None]:
    """(model, prompt) from what stands after the command. Raises ConfigError for more than two."""
    if len(arguments) > 2:
        raise ConfigError(
            f"expected MODEL and PROMPT, got {len(arguments)} arguments; put the prompt in quotes"
        )
    if len(arguments) == 2:
        return arguments[0], arguments[1]
    if not arguments:
        return None, None
    (only,) = arguments
    return (only, None) if is_file or _names_a_model(only) else (None, only)


def _names_a_model(text: str) -> bool:
    from octavo import bundled
    from octavo.engine.locate import HUB_ID

    if text == "auto" or text in bundled.names() or HUB_ID.fullmatch(text):
        return True
    try:
        return Path(text).expanduser().exists()
    except (OSError, ValueError):
        return False


def _run_one(config: EngineConfig, args: argparse.Namespace, params: SamplingParams, prompt: str) -> int:
    from octavo.engine.llm import LLM
    from octavo.engine.outputs import Delta, RequestEnded

    with LLM.from_config(config) as llm:
        streamed = not args.json and params.n == 1 and params.beam_width is None
        for update in llm.stream(_prompt(llm, {"prompt": prompt}, args.chat), params):
            if isinstance(update, Delta) and streamed:
                print(update.text, end="", flush=True)
            if isinstance(update, RequestEnded):
                return _print_end(update.output, streamed=streamed, as_json=args.json)
    return FAILED


def _print_end(done: RequestOutput, *, streamed: bool, as_json: bool) -> int:
    if as_json:
        output.print_json(results.as_json(done))
    elif streamed:
        print()
    else:
        for choice in done.outputs:
            print(f"[{choice.index}] {choice.text}")
    errors = [choice.error for choice in done.outputs if choice.error]
    for error in errors:
        print(f"octavo: {error}", file=sys.stderr)
    return FAILED if errors else DONE


def _prompt(llm: LLM | AsyncLLM, row: dict[str, Any], as_chat: bool) -> Any:
    """What an engine takes, from an input line. Raises RequestError."""
    from octavo.codec.chat import chat_prompt

    given = [name for name in ("prompt", "prompt_token_ids", "messages") if row.get(name) is not None]
    if len(given) != 1:
        raise RequestError(
            f"a line needs one of prompt, prompt_token_ids and messages, it has {given or 'none'}"
        )
    if given == ["prompt_token_ids"]:
        return {"prompt_token_ids": row["prompt_token_ids"]}
    if given == ["prompt"] and not as_chat:
        return {"prompt": row["prompt"]}
    messages = row["messages"] if given == ["messages"] else [{"role": "user", "content": row["prompt"]}]
    text = chat_prompt(llm.tokenizer, messages, now=datetime.now())
    return {"prompt_token_ids": llm.tokenizer.encode(text, add_special_tokens=False)}


async def _run_file(config: EngineConfig, args: argparse.Namespace, params: SamplingParams) -> int:
    from octavo.engine.service import AsyncLLM

    rows = list(_lines(Path(args.input)))
    with open_output(args.output) as out:
        llm = await asyncio.to_thread(AsyncLLM.from_config, config)
        try:
            with progress.Progress("prompts", len(rows)) as bar:
                num_failed = await _answer_all(llm, rows, args, params, out, bar)
        finally:
            await llm.close()
    if num_failed:
        print(f"octavo: {num_failed} of {len(rows)} lines failed; they hold an `error`", file=sys.stderr)
    return FAILED if num_failed else DONE


async def _answer_all(
    llm: AsyncLLM,
    rows: list[dict[str, Any]],
    args: argparse.Namespace,
    params: SamplingParams,
    out: TextIO,
    bar: progress.Progress,
) -> int:
    """Write answers in the order of the lines, as soon as all before them are there; returns the failures."""
    room = asyncio.Semaphore(IN_FLIGHT * llm.built.plan.config.scheduler.max_num_seqs)

    async def answer(row: dict[str, Any]) -> dict[str, Any]:
        async with room:
            try:
                return await _answer(llm, row, args, params)
            except RequestError as error:
                return {"error": {"code": error.code, "message": str(error), "param": error.param}}
            finally:
                bar.advance()

    num_failed = 0
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(answer(row)) for row in rows]
        for index, task in enumerate(tasks):
            line = await task
            num_failed += "error" in line
            out.write(json.dumps({"index": index, **line}, ensure_ascii=False) + "\n")
            out.flush()
    return num_failed


async def _answer(
    llm: AsyncLLM, row: dict[str, Any], args: argparse.Namespace, params: SamplingParams
) -> dict[str, Any]:
    from octavo.engine.outputs import RequestEnded

    own = {
        name: value for name, value in row.items() if name not in ("prompt", "prompt_token_ids", "messages")
    }
    try:
        params = sampling.read(args, **own) if own else params
    except TypeError as error:
        raise RequestError(f"unknown field in the line: {error}") from None
    async for update in llm.generate(_prompt(llm, row, args.chat), params):
        if isinstance(update, RequestEnded):
            done = results.as_json(update.output)
            errors = [choice.error for choice in update.output.outputs if choice.error]
            if errors:
                done["error"] = {"code": "engine_error", "message": errors[0], "param": None}
            return done
    raise RequestError("the request ended without an answer")


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSON Lines file. Raises ConfigError naming the line."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from error
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{path}, line {number} is not JSON: {error}") from None
        if not isinstance(row, dict):
            raise ConfigError(f"{path}, line {number} is not an object")
        yield row


def open_output(path: str) -> TextIO:
    """Raises ConfigError before any work is done."""
    try:
        return open(path, "w", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from error
