"""Kernel benches at toy sizes: their gates let the reference pass and stop what is subtly wrong."""

from __future__ import annotations

import argparse
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from benches.harness import Bench, GateFailed
from benches.kernels import cached, draws, linear, paged_decode, paged_prefill, trial
from benches.record import read
from octavo.kernels.attention.reference import paged_attention
from octavo.kernels.choose import Impl, fits_all
from octavo.kernels.linear import IMPLS, pack
from octavo.kernels.native import instruction_sets
from tests.benches.made import LIMITS

TINY = {
    draws: ["--rows", "1,3", "--vocab", "300"],
    linear: ["--rows", "1,5", "--in-features", "48", "--out-features", "40"],
    paged_decode: [
        "--sequences",
        "1,3",
        "--tokens",
        "37",
        "--heads",
        "4",
        "--kv-heads",
        "2",
        "--head-dim",
        "16",
    ],
    paged_prefill: ["--rows", "9", "--before", "0,21", "--heads", "4", "--kv-heads", "2", "--head-dim", "16"],
}


def parsed(module: ModuleType, *more: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--kernels", default=instruction_sets())
    module.configure(parser)
    return parser.parse_args([*TINY[module], *more])


def built(module: ModuleType, *more: str) -> list[Bench]:
    torch.manual_seed(0)
    return list(module.build(parsed(module, *more), LIMITS))


@pytest.mark.parametrize("module", list(TINY), ids=lambda module: module.__name__.rpartition(".")[2])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gates_pass_and_subjects_answer(
    module: ModuleType, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "REPEAT_S", 1e-5)
    benches = built(module, "--dtype", dtype)
    assert len({bench.slug for bench in benches}) == len(benches)
    for bench in benches:
        assert "error budget" in bench.gate()
        assert "reference" in bench.subjects or "ladder" in bench.subjects
        for subject in bench.subjects.values():
            figures = subject(0)
            assert figures["call_s"] > 0
            assert set(figures) == set(subject(1))


@pytest.mark.parametrize("module", list(TINY), ids=lambda module: module.__name__.rpartition(".")[2])
def test_a_bench_opens_with_its_question(module: ModuleType) -> None:
    assert (module.__doc__ or "").splitlines()[0].endswith("?")


def spoilt_linear(change: Any) -> dict[str, Any]:
    (reference,) = (impl for impl in IMPLS if impl.name == "reference")
    weight = torch.randn(40, 48, generator=torch.Generator().manual_seed(1))

    def run(x: Tensor, packed: Any) -> Tensor:
        return change(x, reference.run(x, packed))

    return {
        "weight": weight,
        "ready": {"spoilt": (Impl("linear", "spoilt", run, fits_all, pack), pack(weight))},
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda _, out: out + 1e-3, "more than the error budget"),
        (lambda _, out: out.masked_fill(out == out[-1:, -1:], torch.nan), "more than the error budget"),
        (lambda x, out: torch.nextafter(out, out + 1.0) if len(x) > 1 else out, "not the same bits"),
    ],
)
def test_the_linear_gate_stops_wrong_products(change: Any, message: str) -> None:
    x = torch.randn(5, 48, generator=torch.Generator().manual_seed(2))
    assert "error budget" in linear.gate(x, **spoilt_linear(lambda _, out: out))
    with pytest.raises(GateFailed, match=message):
        linear.gate(x, **spoilt_linear(change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda out, _: out * 1.001, "more than the error budget"),
        (
            lambda out, tables: torch.nextafter(out, out + 1.0) if len(tables) > 1 else out,
            "not the same bits",
        ),
    ],
)
def test_the_attention_gate_stops_wrong_results(change: Any, message: str) -> None:
    case = cached.Case.draw(parsed(paged_decode), num_seqs=3, num_tokens=37, num_rows=2)

    def run(*arguments: Any) -> Tensor:
        return change(paged_attention(*arguments), arguments[2])

    with pytest.raises(GateFailed, match=message):
        cached.gate(case, {"spoilt": Impl("paged_attention", "spoilt", run, fits_all)})


def test_the_dense_copy_is_what_the_blocks_hold() -> None:
    case = cached.Case.draw(parsed(paged_decode), num_seqs=3, num_tokens=37, num_rows=2)
    keys, values = case.dense
    for seq, position in ((0, 0), (1, 20), (2, 36)):
        block = int(case.tables[seq, position // 16])
        assert torch.equal(keys[seq, :, position], case.blocks[block, 0, position % 16])
        assert torch.equal(values[seq, :, position], case.blocks[block, 1, position % 16])
    library = case.run_library().transpose(1, 2).reshape(case.q.shape)
    trial.require_within("library", library, *cached.expected(case))


def test_work_counted_for_a_case() -> None:
    case = cached.Case.draw(parsed(paged_decode), num_seqs=3, num_tokens=37, num_rows=2)
    assert case.kv_bytes == 3 * 37 * 2 * 2 * 16 * 4
    assert case.flop == 3 * (36 + 37) * 4 * 4 * 16


def test_short_calls_are_repeated_until_a_repeat_is_long_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    now, numbers = [0.0], []
    monkeypatch.setattr(trial.time, "perf_counter", lambda: now[0])

    def work(number: int) -> None:
        numbers.append(number)
        now[0] += 0.001

    subject = trial.timed(work, lambda call_s: {"per_s": 1 / call_s})
    assert subject(0) == pytest.approx({"call_s": 0.001, "per_s": 1000.0})
    done = len(numbers)
    assert done > trial.REPEAT_S / 0.001
    subject(1)
    assert len(numbers) - done >= trial.REPEAT_S / 0.001
    assert numbers == list(range(len(numbers)))


def test_operands_outgrow_the_last_cache() -> None:
    assert trial.copies(2**20, LIMITS) * 2**20 > 2 * LIMITS.cpu.last_level_bytes
    assert trial.copies(2**30, LIMITS) == 1
    assert trial.copies(1, LIMITS) == 256


def test_sizes_below_one_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        built(paged_decode, "--tokens", "0")


def test_the_command_line_stores_a_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "REPEAT_S", 1e-5)
    monkeypatch.setattr(trial, "measure_machine", lambda _: LIMITS)
    before = torch.get_num_threads()
    words = [*TINY[paged_decode], "--threads", "1", "--repeats", "5", "--results", str(tmp_path)]
    try:
        assert paged_decode.main(words) == 0
    finally:
        torch.set_num_threads(before)
    made = [read(path) for path in sorted(tmp_path.glob("*/*.json"))]
    assert [one.shape["S"] for one in made] == [1, 3]
    assert list(made[0].subjects) == ["reference", *instruction_sets()[:1], "library"]
