"""From a step's arrays to rows of logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from octavo.decode.batched import moved
from octavo.exec.batch import Flat, batch_of, to_device
from octavo.kv.pool import KvPool
from octavo.models.model import Model


class Rows(NamedTuple):
    """What a forward pass gave.

    hidden  [T, E] final hidden states; None where only logits were asked for
    logits  [len(rows), V] float32 of the rows that draw; good until the next step's forward pass
    """

    hidden: Tensor | None
    logits: Tensor


class Forward(Protocol):
    """Runs the model over one step's arrays."""

    def __call__(
        self, flat: Flat, rows: Sequence[int], previous: Tensor | None, *, wants_hidden: bool
    ) -> Rows:
        """Writes keys and values, and computes the logits of `rows`.

        previous      tokens that the step before drew, for those `flat` does not know
        wants_hidden  whether anybody looks at the hidden states
        """


class Eager:
    """Op by op, for steps of any shape."""

    def __init__(self, model: Model, kv: KvPool) -> None:
        self.model, self.kv = model, kv

    def __call__(
        self, flat: Flat, rows: Sequence[int], previous: Tensor | None, *, wants_hidden: bool
    ) -> Rows:
        device = self.model.device
        arrays = to_device(flat, flat.form, device)
        batch = batch_of(arrays, flat.num_positions, None if flat.is_known else previous)
        hidden = self.model.forward(batch, self.kv)
        chosen = (
            hidden if len(rows) == len(hidden) else hidden.index_select(0, moved(rows, torch.int64, device))
        )
        return Rows(hidden if wants_hidden else None, self.model.logits(chosen))
