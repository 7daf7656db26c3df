"""Train the family: `python -m lab.scaling OUT` on two CPU cores; goes on where it was stopped.

Writes OUT/runs.csv, one line a model and token count, which `octavo fit` reads as it is.
"""

from __future__ import annotations

import argparse
import csv
import os
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path

import torch

from lab import corpus, export
from lab.scaling.family import FAMILY, ROWS, TOKENS, Member, recipe
from lab.scaling.train import Outcome, outcomes, total_steps
from lab.scaling.windows import Windows, flat_tokens, held_out_batches

COLUMNS = [field.name for field in fields(Outcome)]


def read_done(path: Path) -> set[tuple[str, int, int]]:
    """(name, seed, steps) of the lines a file has."""
    if not path.exists():
        return set()
    with path.open(newline="", encoding="utf-8") as lines:
        return {(row["name"], int(row["seed"]), int(row["steps"])) for row in csv.DictReader(lines)}


def append(path: Path, outcome: Outcome) -> None:
    """Add a line, and the head before the first; it is on disk when this returns."""
    fresh = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as lines:
        writer = csv.DictWriter(lines, COLUMNS, lineterminator="\n")
        if fresh:
            writer.writeheader()
        writer.writerow(asdict(outcome))
        lines.flush()
        os.fsync(lines.fileno())


def sweep(out: Path, members: Sequence[Member], tokens: Sequence[int], seed: int, max_files: int) -> None:
    """Every member at every token count, small members first. `max_files` of 0 reads the whole library."""
    out.mkdir(parents=True, exist_ok=True)
    train, held_out = corpus.split()
    if max_files:
        train, held_out = train[:max_files], held_out[:max_files]
    tokenizer = export.tokenizer_for(out, train, seed)
    windows = Windows(flat_tokens(tokenizer, train), seed)
    measured = held_out_batches(flat_tokens(tokenizer, held_out), 4 * ROWS)
    runs = out / "runs.csv"
    done = read_done(runs)
    for member in members:
        made = {c for c in tokens if (member.name, seed, total_steps(c)) in done}
        lines = outcomes(
            member.name,
            member.shape(tokenizer.get_vocab_size()),
            windows,
            measured,
            tokens=tokens,
            done=made,
            checkpoint=out / f"{member.name}-{seed}.pt",
            recipe=recipe(seed),
        )
        for outcome in lines:
            append(runs, outcome)
            print(
                f"{outcome.name} {outcome.tokens} tokens: {outcome.loss:.4f} nats, {outcome.wall_s} s",
                flush=True,
            )


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path, help="folder for runs.csv, the tokenizer and the checkpoints")
    parser.add_argument("--members", nargs="+", choices=[m.name for m in FAMILY], help="default: all")
    parser.add_argument(
        "--tokens", nargs="+", type=int, default=list(TOKENS), help="token counts to measure at"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--max-files", type=int, default=0, help="read only so many files, for a trial")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    chosen = [m for m in FAMILY if options.members is None or m.name in options.members]
    sweep(options.out, chosen, options.tokens, options.seed, options.max_files)


if __name__ == "__main__":
    main()
