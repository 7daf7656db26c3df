"""Steps before the first request: of which shapes they are, and that nothing comes of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from octavo.exec.batch import Flat
from octavo.exec.draws import draw_together
from octavo.exec.forward import Eager, Rows
from octavo.exec.runner import Runner
from octavo.exec.warm import warm
from octavo.kv.pool import KvPool
from octavo.models.loader import load
from octavo.models.model import Model
from tests.engine.tiny import CONFIG, write_checkpoint
from tests.exec.test_ahead import NUM_BLOCKS, Desk, P, told

LIMITS = {"max_num_seqs": 20, "max_num_batched_tokens": 140, "max_model_len": 300}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    torch.set_num_threads(1)
    folder: Path = tmp_path_factory.mktemp("m")
    write_checkpoint(folder, with_tokenizer=False, **CONFIG | {"max_position_embeddings": 300})
    return load(folder, dtype=torch.float32, kernels="reference")


class Watched:
    """Notes counts, the longest position before, and rows of logits."""

    def __init__(self, eager: Eager) -> None:
        self.seen: list[tuple[list[int], int, int]] = []
        self._eager = eager

    def __call__(
        self, flat: Flat, rows: Sequence[int], previous: Tensor | None, *, wants_hidden: bool
    ) -> Rows:
        assert flat.is_known
        self.seen.append((flat.counts, max(flat.starts), len(rows)))
        return self._eager(flat, rows, previous, wants_hidden=wants_hidden)


def runner(model: Model) -> tuple[Runner, Watched]:
    kv = KvPool(model.kv_layout(P), model.arch.num_layers, NUM_BLOCKS)
    watched = Watched(Eager(model, kv))
    return Runner(model, kv, forward=watched, draw=draw_together(model)), watched


@pytest.mark.parametrize(
    ("limits", "wanted"),
    [
        (
            LIMITS,
            [
                ([1], 0, 1), ([65], 0, 1), ([129], 0, 1), ([2], 0, 1), ([2], 256, 1), ([2, *[1] * 16], 0, 17),
                ([2, *[1] * 16], 256, 17),
            ],
        ),
        ({**LIMITS, "max_model_len": 100}, [([1], 0, 1), ([65], 0, 1), ([2], 0, 1), ([2, *[1] * 16], 0, 17)]),
        ({**LIMITS, "max_num_seqs": 1, "max_num_batched_tokens": 1}, [([1], 0, 1)]),
    ],
    ids=["all", "short", "one"],
)  # fmt: skip
def test_shapes(model: Model, limits: dict[str, int], wanted: list[Any]) -> None:
    made, watched = runner(model)
    assert warm(made, **limits) == len(wanted)
    assert watched.seen == wanted
    assert not made._held


def test_nothing_comes_of_them(model: Model) -> None:
    """Later steps have the bits they have without, and only the null block is written."""
    cold, _ = runner(model)
    want = told(Desk(cold).one_by_one(5))
    made, _ = runner(model)
    made.kv.poison(range(NUM_BLOCKS))
    warm(made, **LIMITS)
    assert bool(made.kv.arena[:, 1:].isnan().all())
    assert not bool(made.kv.arena[:, 0].isnan().all())
    assert told(Desk(made).one_by_one(5)) == want
