"""Measure a finished model folder with transformers: `python -m lab.evaluate FOLDER OUT.json`.

The model is read as it ships, rounded to bfloat16, through its own chat template, and decodes greedily. These
are the figures that count; those in the training log are for steering.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from octavo.evals import run, tasks
from octavo.evals.run import Messages

RECALL_PAIRS = (2, 4, 8, 12, 16)
NEEDLE_CONTEXTS = (500, 1000, 1900)


class Subject:
    """A model folder under test."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, padding_side="left")
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)

    def count_tokens(self, text: str) -> int:
        """Number of tokens of a text."""
        return len(self.tokenizer.encode(text, add_special_tokens=False))

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without a start token."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        return ids

    @torch.inference_mode()
    def generate(self, conversations: Sequence[Messages], max_tokens: int) -> list[str]:
        """Greedy replies."""
        prompts = [
            self.tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
            for messages in conversations
        ]
        batch = self.tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False)
        ids, mask = batch["input_ids"], batch["attention_mask"]
        out = self.model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=max_tokens, do_sample=False
        )
        replies: list[str] = self.tokenizer.batch_decode(out[:, ids.shape[1] :], skip_special_tokens=True)
        return replies

    @torch.inference_mode()
    def logprobs(self, windows: Sequence[Sequence[int]]) -> list[list[float]]:
        """Log-probability of each token but the first; windows of any lengths."""
        values = []
        for window in windows:
            tokens = torch.tensor([list(window)])
            scores = self.model(tokens).logits[0, :-1].float().log_softmax(-1)
            values.append(scores.gather(-1, tokens[0, 1:, None]).squeeze(-1).tolist())
        return values


def measure(subject: Subject, limit: int | None, seed: int) -> dict[str, object]:
    """Every task, and perplexity on the held-out files."""
    results: dict[str, object] = {}

    def note(name: str, report: run.Report) -> None:
        print(f"{name}: {report.total}", flush=True)
        results[name] = report.as_dict()

    note("stdlib-qa", run.evaluate("stdlib-qa", subject.generate, batch_items=128, limit=limit, seed=seed))
    note("recall", run.evaluate("recall", subject.generate, num_pairs=RECALL_PAIRS, limit=limit, seed=seed))
    for context in NEEDLE_CONTEXTS:
        report = run.evaluate(
            "needle",
            subject.generate,
            context_tokens=context,
            count_tokens=subject.count_tokens,
            batch_items=8,
            limit=limit,
            seed=seed,
        )
        note(f"needle-{context}", report)
    bos = subject.tokenizer.bos_token_id
    for window in (1024, 2048):
        got = run.perplexity(
            tasks.validation_texts(), subject.logprobs, subject.encode, bos_id=bos, window_tokens=window
        )
        print(
            f"perplexity in windows of {window}: {got.perplexity:.3f}, {got.bits_per_byte:.4f} bits per byte"
        )
        results[f"perplexity-{window}"] = {
            "perplexity": got.perplexity,
            "bits_per_byte": got.bits_per_byte,
            "tokens": got.tokens,
            "text_bytes": got.text_bytes,
        }
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path, help="where the figures go, as JSON")
    parser.add_argument("--limit", type=int, help="items per task, or per number of pairs or depth")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    figures = measure(Subject(options.folder), options.limit, options.seed)
    options.out.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
