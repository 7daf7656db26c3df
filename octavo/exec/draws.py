"""How a runner draws: row by row at once, or all rows together on the device and read later."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from octavo.decode.batched import draw
from octavo.decode.logprobs import BadLogits, Choice
from octavo.decode.sampler import Job, sample_rows
from octavo.kernels import sampling
from octavo.kernels.choose import Need, choose
from octavo.models.model import Model


class Drawn(Protocol):
    """One token per job.

    tokens  [J] int64 on the device, for the next step's input; None where `read` has no need to wait
    """

    @property
    def tokens(self) -> Tensor | None: ...

    def read(self) -> list[Choice | BadLogits]: ...


Draw = Callable[[Tensor, Sequence[Job]], Drawn]
"""From rows of logits [N, V] float32 and jobs on them."""


@dataclass(frozen=True, slots=True)
class Known:
    """Choices made already."""

    choices: list[Choice | BadLogits]

    @property
    def tokens(self) -> None:
        return None

    def read(self) -> list[Choice | BadLogits]:
        return self.choices


def draw_for(model: Model) -> Draw:
    """Row by row for a processor, whose caches hold a row; all rows together for a device, which is far away."""
    if model.device.type == "cpu":
        return lambda logits, jobs: Known(sample_rows(logits, jobs, model.sampling))
    return draw_together(model)


def draw_together(model: Model) -> Draw:
    """All rows together, with the kernel that fits the model's device."""
    need = Need(device=model.device.type, dtype=model.dtype, sizes={"V": model.arch.vocab_size})
    likeliest, _ = choose("likeliest", need, sampling.IMPLS)
    return lambda logits, jobs: draw(logits, jobs, likeliest.run)
