"""Train the bundled model: `python -m lab.train OUT --hours 1.6` on two CPU cores.

Every step reads one batch of each kind (library text, questions about it, recall, needle). Windows are short
first, so that heads that retrieve form soon, and whole later. Learning rates warm up, stay, and fall to zero.
Progress is the fraction of --hours gone by, or of --steps done where that is given: only the latter repeats
bit for bit. A run that stopped goes on from OUT/checkpoint.pt.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from lab import corpus, export, guide, measure
from lab.batches import Batch, Batches
from lab.model import Llama, Shape, Watched
from lab.muon import Muon
from lab.tokenizer import PAD_ID


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """What a step reads while progress is below `until`.

    width         tokens of a needle row, and of a text row in every other step (the others stay narrow)
    other_share   part of the questions in another phrasing than the shipped one
    copy_share    part of the recall rows that repeat a list
    *_weight      of the batch's mean loss; text and questions weigh one; of the guide's, see `lab.guide`
    """

    until: float
    width: int
    question_tokens: int
    text_tokens: int
    recall_rows: int
    needle_rows: int
    recall_width: int = 192
    other_share: float = 0.3
    copy_share: float = 0.12
    recall_weight: float = 0.5
    needle_weight: float = 0.5
    guide_weight: float = 0.0


NARROW = 512

PHASES = (
    Phase(until=0.12, width=512, question_tokens=4000, text_tokens=6144, recall_rows=16, needle_rows=8),
    Phase(
        until=0.29,
        width=256,
        question_tokens=2500,
        text_tokens=4096,
        recall_rows=96,
        recall_width=64,
        needle_rows=8,
        copy_share=0.4,
        recall_weight=1.0,
        needle_weight=0.5,
        guide_weight=0.3,
    ),
    Phase(
        until=0.385,
        width=512,
        question_tokens=2500,
        text_tokens=4096,
        recall_rows=32,
        needle_rows=6,
        copy_share=0.2,
        recall_weight=1.0,
        needle_weight=1.0,
        guide_weight=0.1,
    ),
    Phase(
        until=0.45,
        width=1024,
        question_tokens=4000,
        text_tokens=6144,
        recall_rows=16,
        needle_rows=4,
        recall_weight=1.0,
        needle_weight=1.0,
    ),
    Phase(
        until=1.0,
        width=2048,
        question_tokens=4000,
        text_tokens=6144,
        recall_rows=16,
        needle_rows=2,
        recall_weight=1.0,
        needle_weight=1.0,
    ),
)
"""Questions are learned soon. Looking up starts late, and starts on short rows, where there is little to look at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Everything that shapes the run but its length and phases."""

    seed: int = 1
    muon_lr: float = 0.02
    adam_lr: float = 4e-3
    warmup: float = 0.02
    decay_from: float = 0.45


def lr_scale(recipe: Recipe, progress: float) -> float:
    """Warm up, stay, fall linearly to zero."""
    if progress < recipe.warmup:
        return (progress + 1e-3) / (recipe.warmup + 1e-3)
    return min(1.0, max(0.0, (1 - progress) / (1 - recipe.decay_from)))


def share_of(batch: Batch, of: list[Batch]) -> float:
    """The part of the weight of several batches that one of them holds."""
    return float(batch.weights.sum() / sum(b.weights.sum() for b in of))


def phase_at(progress: float) -> Phase:
    """The phase a run is in."""
    return next((phase for phase in PHASES if progress < phase.until), PHASES[-1])


def batches_of(phase: Phase, source: Batches, step: int) -> list[tuple[float, Batch]]:
    """What one step reads, each batch with its weight."""
    text_width = phase.width if step % 2 else NARROW
    asked = source.questions(step, phase.question_tokens, phase.other_share)
    return [
        *((share_of(part, asked), part) for part in asked),
        (1.0, source.text(step, phase.text_tokens // text_width, text_width)),
        (phase.recall_weight, source.recall(step, phase.recall_rows, phase.recall_width, phase.copy_share)),
        (phase.needle_weight, source.needle(step, phase.needle_rows, phase.width)),
    ]


def loss_of(model: Llama, batch: Batch, guide_weight: float = 0.0) -> tuple[Tensor, float, float]:
    """Weighted mean cross-entropy, the share of full-weight tokens predicted, and the guide's own loss.

    The guide's loss, times `guide_weight`, is part of the first.
    """
    watched: Watched | None = [] if guide_weight else None
    tokens = torch.from_numpy(batch.tokens)
    weights = torch.from_numpy(batch.weights)[:, 1:].reshape(-1)
    kept = weights.nonzero().squeeze(1)
    hidden = model.hidden(tokens, watched)[:, :-1].reshape(-1, model.shape.hidden)[kept]
    logits = model.logits(hidden).float()
    targets = tokens[:, 1:].reshape(-1)[kept]
    losses = F.cross_entropy(logits, targets, reduction="none")
    marks = weights[kept]
    with torch.no_grad():
        full = marks >= 0.5
        right = (logits.argmax(-1) == targets)[full].float().mean().item()
    loss = (losses * marks).sum() / marks.sum()
    if watched is None:
        return loss, right, 0.0
    found = torch.from_numpy(guide.places(batch.tokens, batch.weights))
    guided = guide.guide_loss(watched, found, tokens != PAD_ID)
    return loss + guide_weight * guided, right, guided.item()


def optimizers_of(model: Llama, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices, AdamW for the embedding and the norms, at their full rates."""
    matrices = [w for n, w in model.named_parameters() if w.ndim == 2 and "embed" not in n]
    rest = [w for n, w in model.named_parameters() if w.ndim == 1 or "embed" in n]
    adam = torch.optim.AdamW(rest, lr=recipe.adam_lr, betas=(0.9, 0.95), weight_decay=0.0)
    return [Muon(matrices, lr=recipe.muon_lr), adam]


class Run:
    """One training run: model, optimizers, clock and log."""

    def __init__(self, out: Path, recipe: Recipe, shape: Shape, hours: float, steps: int | None) -> None:
        self.out, self.recipe, self.shape = out, recipe, shape
        self.total_s, self.total_steps = hours * 3600, steps
        out.mkdir(parents=True, exist_ok=True)
        train, held_out = corpus.split()
        self.tokenizer = export.tokenizer_for(out, train, recipe.seed)
        self.batches = Batches(self.tokenizer, train, recipe.seed)
        self.probe = measure.Probe(self.batches, held_out)
        self.model = Llama(shape, torch.bfloat16, recipe.seed)
        self.optimizers = optimizers_of(self.model, recipe)
        self.base_lrs = [recipe.muon_lr, recipe.adam_lr]
        self.step, self.elapsed_s, self.tokens = 0, 0.0, 0
        if (out / "checkpoint.pt").exists():
            self.load()

    def load(self) -> None:
        """Go on from the checkpoint."""
        state = torch.load(self.out / "checkpoint.pt", weights_only=True)
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step, self.elapsed_s, self.tokens = state["step"], state["elapsed_s"], state["tokens"]

    def save(self) -> None:
        """Write the checkpoint, whole or not at all."""
        state = {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "step": self.step,
            "elapsed_s": self.elapsed_s,
            "tokens": self.tokens,
        }
        torch.save(state, self.out / "checkpoint.tmp")
        (self.out / "checkpoint.tmp").replace(self.out / "checkpoint.pt")

    def progress(self) -> float:
        """Fraction of the run that is over."""
        if self.total_steps is not None:
            return self.step / self.total_steps
        return self.elapsed_s / self.total_s

    def one_step(self) -> dict[str, float]:
        """One update of the weights; figures for the log."""
        progress = self.progress()
        scale = lr_scale(self.recipe, progress)
        phase = phase_at(progress)
        figures: dict[str, float] = {}
        for weight, batch in batches_of(phase, self.batches, self.step):
            guide_weight = phase.guide_weight if batch.kind == "recall" else 0.0
            loss, right, guided = loss_of(self.model, batch, guide_weight)
            if guide_weight:
                figures["guide"] = guided
            torch.autograd.backward(loss * weight)
            share = weight if batch.kind == "questions" else 1.0
            figures[batch.kind] = figures.get(batch.kind, 0.0) + share * loss.item()
            figures[batch.kind + "_right"] = figures.get(batch.kind + "_right", 0.0) + share * right
            self.tokens += batch.tokens.size
        for optimizer, base in zip(self.optimizers, self.base_lrs, strict=True):
            optimizer.param_groups[0]["lr"] = base * scale
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return figures

    def log(self, kind: str, figures: dict[str, float]) -> None:
        """One line of JSON to the log file and to the screen."""
        row = {"kind": kind, "step": self.step, "progress": round(self.progress(), 4), "tokens": self.tokens}
        row |= {"elapsed_s": round(self.elapsed_s, 1)} | {k: round(v, 4) for k, v in figures.items()}
        line = json.dumps(row)
        print(line, flush=True)
        with (self.out / "log.jsonl").open("a", encoding="utf-8") as log:
            log.write(line + "\n")

    def train(self, log_steps: int, save_s: float) -> None:
        """Step until progress is one; measure and save every `save_s` seconds."""
        sums: dict[str, float] = {}
        logged = self.step
        saved_s = self.elapsed_s
        while self.progress() < 1.0:
            began = time.monotonic()
            figures = self.one_step()
            for name, value in figures.items():
                sums[name] = sums.get(name, 0.0) + value
            if self.step % log_steps == 0:
                self.log("train", {name: value / (self.step - logged) for name, value in sums.items()})
                sums, logged = {}, self.step
            self.elapsed_s += time.monotonic() - began
            if self.elapsed_s - saved_s > save_s:
                began = time.monotonic()
                self.save()
                self.log("probe", self.probe.run(self.model))
                export.snapshot(self.model, self.tokenizer, self.out / "snapshot")
                self.elapsed_s += time.monotonic() - began
                saved_s = self.elapsed_s
        self.save()
        self.log("probe", self.probe.run(self.model))
        export.snapshot(self.model, self.tokenizer, self.out / "snapshot")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path, help="folder for checkpoint, log and snapshot")
    parser.add_argument("--hours", type=float, default=1.6, help="length of the run by the clock")
    parser.add_argument("--steps", type=int, help="length of the run in steps; overrides --hours")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--log-steps", type=int, default=20)
    parser.add_argument("--save-s", type=float, default=600.0, help="seconds between checkpoints")
    parser.add_argument("--recipe", type=json.loads, default={}, help="fields of Recipe to change, as JSON")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    recipe = Recipe(**options.recipe)
    run = Run(options.out, recipe, Shape(), options.hours, options.steps)
    run.log("start", {"parameters": sum(w.numel() for w in run.model.parameters())})
    print(
        json.dumps(asdict(recipe) | asdict(run.shape) | {"phases": [asdict(p) for p in PHASES]}), flush=True
    )
    run.train(options.log_steps, options.save_s)


if __name__ == "__main__":
    main()
