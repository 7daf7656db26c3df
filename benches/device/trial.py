"""What `python -m benches.gpu` measures, how large it is, and how long all of it may take."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from benches.device import limits
from benches.device.subjects import Requests
from octavo.units import MIB

LEAST_S = 15.0
"""With less time than this left, no further question is asked."""


@dataclass(frozen=True, kw_only=True)
class Way:
    """How a model is loaded, where that is not as it comes."""

    quantization: str | None = None
    kv_dtype: str | None = None
    batch_invariant: bool = True

    @property
    def label(self) -> str:
        """What stands behind a question about it."""
        words = (
            self.quantization,
            self.kv_dtype and f"kv {self.kv_dtype}",
            None if self.batch_invariant else "bits by batch",
        )
        return "".join(f" {word}" for word in words if word)


AS_IT_COMES = Way()


@dataclass(frozen=True, kw_only=True)
class Trial:
    """How large everything is.

    variant_batches  of decodes whose products may depend on the batch; () where no kernel is faster for it
    product_rows     of the products alone
    """

    device: str
    models: tuple[str, ...]
    batches: tuple[int, ...]
    context: int
    num_steps: int
    prompt: int
    requests: Requests
    host_seqs: int
    max_num_seqs: int
    copy_bytes: int
    side: int
    quantizations: tuple[str, ...] = ("w8a16", "w4a16", "fp8")
    rounded_model: str = "llama-3.1-8b"
    rounded_batches: tuple[int, ...] = (1, 32)
    fp8_kv_batches: tuple[int, ...] = (32, 256)
    variant_batches: tuple[int, ...] = (1, 32, 256)
    product_rows: tuple[int, ...] = (1, 32, 256, 8192)

    def num_questions(self) -> int:
        """Those about all models together."""
        found = len(self.models) * (1 + len(self.batches) + 3)
        if self.rounded_model in self.models:
            found += len(self.product_rows) + len(self.quantizations) * (1 + len(self.rounded_batches))
            found += 1 + len(self.fp8_kv_batches) if self.fp8_kv_batches else 0
            found += 2 + len(self.variant_batches) if self.variant_batches else 0
        return found


REAL = Trial(
    device="cuda",
    models=("qwen3-0.6b", "llama-3.1-8b"),
    batches=(1, 32, 256),
    context=1024,
    num_steps=64,
    prompt=8192,
    requests=Requests(512, 64, 512, 80),
    host_seqs=256,
    max_num_seqs=256,
    copy_bytes=limits.COPY_BYTES,
    side=limits.SIDE,
)
DRY = Trial(
    device="cpu",
    models=("dry",),
    batches=(1, 3),
    context=40,
    num_steps=3,
    prompt=70,
    requests=Requests(4, 5, 20, 6),
    host_seqs=3,
    max_num_seqs=4,
    copy_bytes=MIB,
    side=64,
    rounded_model="dry",
    rounded_batches=(1, 3),
    fp8_kv_batches=(),  # engines on a processor refuse them
    variant_batches=(),  # and these
    product_rows=(1, 5),
)


class Allowance:
    """Time for everything. Each question gets an equal part of what those before it left."""

    def __init__(
        self, within_s: float, num_questions: int, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._clock, self._ends_s, self._num_left = clock, clock() + within_s, num_questions

    @property
    def left_s(self) -> float:
        return max(self._ends_s - self._clock(), 0.0)

    def share_s(self) -> float | None:
        """Of the next question, which counts as asked; None where too little time is left for it."""
        left_s, self._num_left = self.left_s, self._num_left - 1
        return None if left_s < LEAST_S else left_s / max(self._num_left + 1, 1)
