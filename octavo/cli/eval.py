"""Quality of a model on a task.

octavo eval --task stdlib-qa            questions about the standard library
octavo eval MODEL --task recall         key-value lookup in the prompt
octavo eval MODEL --task needle         one fact hidden in a long context, at ten depths
octavo eval MODEL --task perplexity     of held-out source files
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from octavo.cli import output, settings
from octavo.cli.generate import ENGINE
from octavo.cli.models import check_early
from octavo.cli.progress import Progress
from octavo.core.sequence import SamplingParams
from octavo.errors import Bug, ConfigError

if TYPE_CHECKING:
    from octavo.engine.llm import LLM
    from octavo.evals.run import Report

TASKS = ("perplexity", "stdlib-qa", "recall", "needle")
BATCH_ITEMS = 64


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", metavar="MODEL", help="directory, hub id, bundled name")
    parser.add_argument("--task", required=True, choices=TASKS)
    parser.add_argument(
        "--limit", type=int, metavar="COUNT", help="items at most (recall, needle: per group)"
    )
    parser.add_argument(
        "--task-seed", type=int, default=0, metavar="INT", help="which items are drawn [default 0]"
    )
    parser.add_argument("--num-pairs", type=int, nargs="+", metavar="COUNT", help="recall: pairs [default 8]")
    parser.add_argument("--depths", type=float, nargs="+", metavar="SHARE", help="needle: places, 0.0 to 1.0")
    parser.add_argument("--context-tokens", type=int, metavar="COUNT", help="needle: length [default 1900]")
    parser.add_argument(
        "--window-tokens", type=int, metavar="COUNT", help="perplexity: window [default 1024]"
    )
    output.add_json(parser)
    settings.add_flags(parser, ENGINE)


def run(args: argparse.Namespace) -> int:
    _refuse_idle(args)
    config = settings.read(args).engine
    check_early(config.model.model)
    from octavo.engine.llm import LLM

    with LLM.from_config(config) as llm:
        return _perplexity(llm, args) if args.task == "perplexity" else _task(llm, args)


def _refuse_idle(args: argparse.Namespace) -> None:
    """Raises ConfigError for a flag the task has no use for."""
    only = {
        "num_pairs": "recall",
        "depths": "needle",
        "context_tokens": "needle",
        "window_tokens": "perplexity",
    }
    for name, task in only.items():
        if getattr(args, name) is not None and args.task != task:
            raise ConfigError(f"--{name.replace('_', '-')} belongs to --task {task}, not to {args.task}")
    if args.limit is not None and args.limit < 1:
        raise ConfigError(f"--limit must be at least 1, got {args.limit}")


def _task(llm: LLM, args: argparse.Namespace) -> int:
    from octavo.evals import run as evals

    items = evals.items_of(
        args.task,
        limit=args.limit,
        seed=args.task_seed,
        num_pairs=args.num_pairs or (8,),
        depths=args.depths or evals.DEFAULT_DEPTHS,
        context_tokens=args.context_tokens or 1900,
        count_tokens=lambda text: len(llm.tokenizer.encode(text, add_special_tokens=False)),
    )
    with Progress(args.task, len(items)) as bar:

        def generate(conversations: Sequence[Sequence[Mapping[str, str]]], max_tokens: int) -> list[str]:
            outputs = llm.chat(list(conversations), SamplingParams(temperature=0.0, max_tokens=max_tokens))
            bar.advance(len(outputs))
            return [one.outputs[0].text for one in outputs]

        report = evals.score(args.task, items, generate, BATCH_ITEMS)
    if args.json:
        output.print_json(report.as_dict())
    else:
        _print(report)
    return 0


def _print(report: Report) -> None:
    rows = [("all", *_share(report.total))]
    rows += [(f"{report.group_tag} {group:g}", *_share(share)) for group, share in report.groups.items()]
    output.print_table([report.task, "right", "share", "95 % interval"], rows, right=[1, 2])
    for miss in report.misses[:3]:
        print(
            f"\nasked     {_short(miss.question)}\nexpected  {_short(miss.answer)}\nreplied   {_short(miss.reply)}"
        )


def _share(share: object) -> tuple[str, str, str]:
    from octavo.evals.score import Proportion

    assert isinstance(share, Proportion)
    low, high = share.interval
    return f"{share.right} of {share.count}", f"{share.share:.1%}", f"{low:.1%} to {high:.1%}"


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 160 else "..." + line[-157:]


def _perplexity(llm: LLM, args: argparse.Namespace) -> int:
    from octavo.evals.run import perplexity
    from octavo.evals.tasks import validation_texts

    texts = validation_texts()[: args.limit]
    with Progress("windows", None) as bar:

        def logprobs(windows: Sequence[Sequence[int]]) -> list[list[float]]:
            params = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0)
            outputs = llm.generate([{"prompt_token_ids": list(window)} for window in windows], params)
            bar.advance(len(windows))
            return [_own_logprobs(one.prompt_logprobs, one.prompt_token_ids) for one in outputs]

        found = perplexity(
            texts,
            logprobs,
            lambda text: llm.tokenizer.encode(text, add_special_tokens=False),
            bos_id=llm.tokenizer.bos_id,
            window_tokens=_window(llm, args.window_tokens),
        )
    if args.json:
        figures = {
            "perplexity": found.perplexity,
            "bits_per_byte": found.bits_per_byte,
            "tokens": found.tokens,
        }
        output.print_json({"task": "perplexity", **figures, "text_bytes": found.text_bytes})
    else:
        print(
            f"perplexity {found.perplexity:.3f}, {found.bits_per_byte:.3f} bits per byte"
            f" ({found.tokens} tokens, {found.text_bytes} bytes of text)"
        )
    return 0


def _window(llm: LLM, asked: int | None) -> int:
    """The window, with one place left for the token every request must draw. Raises ConfigError."""
    most = llm.built.plan.resolved.max_model_len - 1
    if asked is None:
        return min(1024, most)
    if asked > most:
        raise ConfigError(f"--window-tokens is {asked}, this model has room for {most}")
    return asked


def _own_logprobs(entries: object, tokens: Sequence[int]) -> list[float]:
    """Log-probability of each token but the first."""
    if not isinstance(entries, list) or len(entries) != len(tokens):
        raise Bug(f"prompt_logprobs of {len(tokens)} tokens were asked for and did not come")
    return [entry[token].logprob for entry, token in zip(entries[1:], tokens[1:], strict=True)]
