"""A hardware class and records for the tests, made without measuring anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from benches.record import Hardware, Record, Series
from octavo.engine.cpu import Cache, Cpu
from octavo.engine.measure import MachineLimits

LIMITS = MachineLimits(
    cpu=Cpu("Acme CPU 9 @ 2.0GHz", "x86_64", ("avx2", "avx512_bf16"), (Cache(3, "unified", 2**25, 2),)),
    num_cores=2,
    num_threads=2,
    total_memory_bytes=2**34,
    read_bytes_per_s=2e10,
    fp32_flop_per_s=2e11,
    bf16_flop_per_s=1e12,
    int8_op_per_s=None,
    notes=("int8 products were not measured: none here",),
)


def record(
    subjects: Mapping[str, Mapping[str, Sequence[float]]],
    *,
    read_bytes_per_s: float = 2e10,
    **changes: Any,
) -> Record:
    """A record of made-up figures, by default a rate in tok/s."""
    made = Record(
        question="how fast is it?",
        slug="speed",
        correct=True,
        gate="results are right",
        figure="rate_per_s",
        unit="tok/s",
        better="higher",
        shape={"T": 4},
        repeats=5,
        warmup=1,
        seeds={"prompts": 0},
        subjects={
            name: {figure: Series.of(values) for figure, values in figures.items()}
            for name, figures in subjects.items()
        },
        hardware=Hardware.of(replace(LIMITS, read_bytes_per_s=read_bytes_per_s), other_cores=0.01),
        versions={"torch": "1"},
        commit="0" * 40,
        command="python -m benches.speed",
        date="2030-01-02",
    )
    return replace(made, **changes)
