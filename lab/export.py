"""From a training run to a folder in Hugging Face layout."""

from __future__ import annotations

import gzip
import io
import json
import random
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

from lab import corpus, tokenizer
from lab.model import Llama
from octavo.evals import tasks


def tokenizer_texts(train: Sequence[corpus.Source], seed: int) -> Iterable[str]:
    """What the tokenizer is trained on: library text, questions and recall, in fixed amounts."""
    yield from (source.text for source in train)
    for entry in corpus.entries():
        for question, answer in [(corpus.question(entry), entry.paragraph), *corpus.other_questions(entry)]:
            yield question
            yield answer
    rng = random.Random(f"tokenizer:{seed}")
    for _ in range(3000):
        for key, value in tasks.draw_pairs(rng, 16):
            yield " " + tasks.FACT.format(key=key, value=value)


def tokenizer_for(folder: Path, train: Sequence[corpus.Source], seed: int) -> Tokenizer:
    """The run's tokenizer: trained on the first call, read back from `folder` later."""
    path = folder / "tokenizer.json"
    if not path.exists():
        tokenizer.train(tokenizer_texts(train, seed)).save(str(path))
    return Tokenizer.from_file(str(path))


def gzip_bytes(rows: Sequence[dict[str, str]]) -> bytes:
    """Gzipped JSON Lines; the same rows give the same bytes."""
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb", mtime=0, filename="") as lines:
        for row in rows:
            lines.write((json.dumps(row, ensure_ascii=False) + "\n").encode())
    return packed.getvalue()


def write_eval(folder: Path) -> None:
    """The shipped question file and validation text."""
    folder.mkdir(parents=True, exist_ok=True)
    questions = [{"question": corpus.question(e), "answer": e.sentence} for e in corpus.entries()]
    texts = [{"name": source.name, "text": source.text} for source in corpus.split()[1]]
    (folder / "stdlib_qa.jsonl.gz").write_bytes(gzip_bytes(questions))
    (folder / "validation.jsonl.gz").write_bytes(gzip_bytes(texts))


def weights_of(model: Llama) -> dict[str, torch.Tensor]:
    """Rounded weights under their transformers names; the tied output projection is not repeated."""
    return {name: w.detach().to(torch.bfloat16).contiguous() for name, w in model.named_parameters()}


def snapshot(model: Llama, vocabulary: Tokenizer, folder: Path) -> None:
    """Write the whole model folder beside `folder`, then put it in its place."""
    fresh = folder.with_name(folder.name + ".fresh")
    if fresh.exists():
        shutil.rmtree(fresh)
    fresh.mkdir(parents=True)
    save_file(weights_of(model), fresh / "model.safetensors", metadata={"format": "pt"})
    (fresh / "model.safetensors").chmod(0o644)
    config = json.dumps(model.shape.config(), indent=2) + "\n"
    (fresh / "config.json").write_text(config, encoding="utf-8")
    tokenizer.save(vocabulary, fresh, model.shape.max_tokens)
    write_eval(fresh / "eval")
    old = folder.with_name(folder.name + ".old")
    if folder.exists():
        folder.rename(old)
    fresh.rename(folder)
    if old.exists():
        shutil.rmtree(old)
