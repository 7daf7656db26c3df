"""One member of the family: a trunk at full rates, and at each token count a branch that cools down.

A branch takes the trunk's weights and optimizers when COOLDOWN of its tokens are left, lets the rates fall linearly
to zero over them, and is measured. So one long run serves every token count.
Source: Hägele et al. 2024, "Scaling Laws and Compute-Optimal Training Beyond Fixed Training Durations"
(arXiv 2405.18392), sec. 3.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from lab.batches import Batch
from lab.model import Llama, Shape
from lab.scaling.family import ROWS, WINDOW_TOKENS, matrix_parameters, training_flop_per_token
from lab.scaling.windows import Windows
from lab.train import Recipe, loss_of, optimizers_of

COOLDOWN = 0.3
"""Part of a branch's steps over which the rates fall."""

WARMUP_STEPS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One line of the sweep's file.

    params        of all matrices but the embedding
    total_params  with the embedding, which is the output projection too, and the norms
    loss          nats per token on the held-out files
    flop          of training, by `training_flop_per_token`
    train_loss    mean over the last twentieth of the branch, nats per token
    wall_s        of this branch's own steps, without the trunk
    """

    name: str
    seed: int
    params: int
    total_params: int
    tokens: int
    loss: float
    flop: float
    train_loss: float
    steps: int
    wall_s: float


class Life:
    """Weights, optimizers and the number of steps they have seen."""

    def __init__(self, model: Llama, recipe: Recipe) -> None:
        self.model, self.recipe = model, recipe
        self.optimizers = optimizers_of(model, recipe)
        self.step = 0

    def advance(self, batch: Batch, scale: float) -> float:
        """One update with the rates times `scale`; returns the loss before it."""
        loss, _, _ = loss_of(self.model, batch)
        torch.autograd.backward(loss)
        bases = (self.recipe.muon_lr, self.recipe.adam_lr)
        for optimizer, base in zip(self.optimizers, bases, strict=True):
            optimizer.param_groups[0]["lr"] = base * scale
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return loss.item()

    def branch(self) -> Life:
        """A copy that goes its own way."""
        other = Life(copy.deepcopy(self.model), self.recipe)
        for ours, theirs in zip(self.optimizers, other.optimizers, strict=True):
            theirs.load_state_dict(copy.deepcopy(ours.state_dict()))
        other.step = self.step
        return other

    def save(self, path: Path) -> None:
        """Write the state, whole or not at all."""
        state = {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "step": self.step,
        }
        fresh = path.with_suffix(".tmp")
        torch.save(state, fresh)
        fresh.replace(path)

    def load(self, path: Path) -> None:
        """Go on from what `save` wrote."""
        state = torch.load(path, weights_only=True)
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step = state["step"]


def total_steps(tokens: int) -> int:
    """Steps that read about so many tokens."""
    return max(2, round(tokens / (ROWS * WINDOW_TOKENS)))


def branch_step(steps: int) -> int:
    """The step at which a run of `steps` leaves the trunk."""
    return steps - max(1, round(COOLDOWN * steps))


@torch.no_grad()
def held_out_loss(model: Llama, batches: Sequence[Batch]) -> float:
    """Mean nats per token."""
    total, count = 0.0, 0
    for batch in batches:
        predicted = batch.tokens.shape[0] * (batch.tokens.shape[1] - 1)
        total += loss_of(model, batch)[0].item() * predicted
        count += predicted
    return total / count


def cool_down(life: Life, windows: Windows, steps: int) -> float:
    """Run a branch to its end; returns the mean loss of its last steps."""
    first, losses = life.step, []
    while life.step < steps:
        scale = (steps - life.step) / (steps - first + 1)
        losses.append(life.advance(windows.batch(life.step, ROWS), scale))
    last = losses[-max(1, math.ceil(steps / 20)) :]
    return sum(last) / len(last)


def outcomes(
    name: str,
    shape: Shape,
    windows: Windows,
    held_out: Sequence[Batch],
    *,
    tokens: Sequence[int],
    done: set[int],
    checkpoint: Path,
    recipe: Recipe,
) -> Iterator[Outcome]:
    """Train one member, yielding a line for each token count that is not in `done`, in rising order.

    The trunk is saved after each branch, so a run that was stopped repeats at most one branch and its way there.
    Raises ValueError for a token count whose branch the saved trunk has passed.
    """
    life = Life(Llama(shape, torch.bfloat16, recipe.seed), recipe)
    if checkpoint.exists():
        life.load(checkpoint)
    for count in sorted(set(tokens) - done):
        steps = total_steps(count)
        if life.step > branch_step(steps):
            raise ValueError(
                f"{checkpoint} is past the branch of {count} tokens; use another folder for fewer tokens"
            )
        while life.step < branch_step(steps):
            scale = min(1.0, (life.step + 1) / WARMUP_STEPS)
            life.advance(windows.batch(life.step, ROWS), scale)
        began = time.monotonic()
        branch = life.branch()
        train_loss = cool_down(branch, windows, steps)
        loss = held_out_loss(branch.model, held_out)
        read = steps * ROWS * WINDOW_TOKENS
        yield Outcome(
            name=name,
            seed=recipe.seed,
            params=matrix_parameters(shape),
            total_params=sum(weight.numel() for weight in branch.model.parameters()),
            tokens=read,
            loss=loss,
            flop=read * training_flop_per_token(shape),
            train_loss=train_loss,
            steps=steps,
            wall_s=round(time.monotonic() - began, 1),
        )
        life.save(checkpoint)
