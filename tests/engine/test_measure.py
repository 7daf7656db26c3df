"""Measuring: arithmetic of the figures, prompts that no cache can know, limits that are plausible."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from octavo.engine import measure
from octavo.engine.cpu import read_cpu
from octavo.engine.limits import MachineLimits, measure_machine
from octavo.errors import Bug, ConfigError
from tests.engine.timed_fake import FakeLLM


def test_spread_is_median_and_quartiles() -> None:
    spread = measure.Spread((5.0, 1.0, 2.0, 4.0, 3.0))
    assert (spread.median, spread.iqr) == (3.0, 2.0)
    assert measure.Spread((7.0,)).iqr == 0.0
    with pytest.raises(ValueError, match="at least one"):
        measure.Spread(())


def test_a_run_counts_from_first_arrival_to_last_finish() -> None:
    run = measure.run_requests(FakeLLM(), [[1, 2, 3], [4, 5]], [5, 1])
    first, second = run.requests
    assert (first.ttft_s, first.tpot_s) == pytest.approx((1.0, 0.25))
    assert second.tpot_s is None
    assert (run.num_prompt_tokens, run.num_output_tokens) == (5, 6)
    assert run.wall_s == pytest.approx(2.0)
    assert run.output_tokens_per_s == pytest.approx(3.0)
    assert run.total_tokens_per_s == pytest.approx(5.5)
    assert run.peak_bytes > 2**20


def test_requests_are_greedy_with_forced_lengths() -> None:
    llm = FakeLLM()
    measure.run_requests(llm, [[1], [2]], [3, 4])
    ((_, params),) = llm.calls
    assert [one.max_tokens for one in params] == [3, 4]
    assert all(one.ignore_eos and one.is_greedy for one in params)


def test_an_answer_of_another_length_is_no_measure() -> None:
    with pytest.raises(Bug, match="3 tokens gave 2"):
        measure.run_requests(FakeLLM(shortfall=1), [[1]], [3])


def test_latency_warms_up_and_never_repeats_a_prompt() -> None:
    llm, seen = FakeLLM(), []
    latency = measure.run_latency(
        llm, prompt_tokens=20, output_tokens=5, batch_size=2, repeats=3, warmup=2, on_repeat=seen.append
    )
    assert len(llm.calls) == 5
    assert seen == [1, 2, 3]
    prompts = [tuple(prompt) for ids, _ in llm.calls for prompt in ids]
    assert len(set(prompts)) == 10
    assert {len(prompt) for prompt in prompts} == {20}
    assert latency.ttft_s.values == pytest.approx((1.0, 1.0, 1.0))
    assert latency.tpot_s is not None
    assert latency.tpot_s.median == pytest.approx(0.25)
    assert latency.total_s.median == pytest.approx(2.1)


def test_one_output_token_has_no_time_per_further_token() -> None:
    assert measure.run_latency(FakeLLM(), prompt_tokens=4, output_tokens=1, repeats=1).tpot_s is None


def test_throughput_draws_lengths_once_and_tokens_each_time() -> None:
    llm = FakeLLM()
    found = measure.run_throughput(
        llm, num_requests=6, prompt_tokens=(3, 9), output_tokens=(2, 4), repeats=2, warmup=1, seed=3
    )
    sizes = [[len(prompt) for prompt in ids] for ids, _ in llm.calls]
    assert sizes[0] == sizes[1] == sizes[2]
    assert all(3 <= size <= 9 for size in sizes[0])
    assert len({str(ids) for ids, _ in llm.calls}) == 3
    assert found.num_prompt_tokens == sum(sizes[0])
    assert found.output_tokens_per_s.median == pytest.approx(found.num_output_tokens / found.wall_s.median)


def test_seeds_repeat_prompts_and_stay_in_the_vocabulary() -> None:
    first = measure.random_prompts([40, 3], 11, "a")
    assert first == measure.random_prompts([40, 3], 11, "a")
    assert first != measure.random_prompts([40, 3], 11, "b")
    assert set(first[0]) <= set(range(11))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"repeats": 0}, "repeats must be at least 1"),
        ({"num_requests": 0}, "num_requests must be at least 1"),
        ({"prompt_tokens": (5, 4)}, "prompt_tokens must be a range"),
        ({"output_tokens": (0, 4)}, "output_tokens must be a range"),
    ],
)
def test_throughput_refuses_empty_workloads(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        measure.run_throughput(FakeLLM(), **change)


def test_machine_limits_put_the_thread_count_back() -> None:
    before = torch.get_num_threads()
    limits = measure_machine(1, array_bytes=2**20, sides=(32, 64))
    assert torch.get_num_threads() == before
    assert limits.num_threads == 1
    assert limits.read_bytes_per_s > 0
    assert limits.flop_per_s("float32") == limits.fp32_flop_per_s > 0
    assert limits.bf16_flop_per_s > 0
    assert limits.flop_per_s("int3") is None
    assert (limits.int8_op_per_s is None) == bool(limits.notes)


@pytest.mark.parametrize(
    ("fp32", "bf16", "int8", "of_bf16", "of_int8"),
    [(1.0, 0.1, None, 1.0, 1.0), (1.0, 8.0, 4.0, 8.0, 8.0), (1.0, 8.0, 16.0, 8.0, 16.0)],
)
def test_weights_may_be_multiplied_at_a_higher_precision(
    fp32: float, bf16: float, int8: float | None, of_bf16: float, of_int8: float
) -> None:
    limits = MachineLimits(
        cpu=read_cpu(),
        num_cores=1,
        num_threads=1,
        total_memory_bytes=2,
        read_bytes_per_s=1e9,
        fp32_flop_per_s=fp32,
        bf16_flop_per_s=bf16,
        int8_op_per_s=int8,
    )
    assert limits.flop_per_s("float32") == fp32
    assert limits.flop_per_s("bfloat16") == of_bf16
    assert limits.flop_per_s("int8") == limits.flop_per_s("int4") == of_int8
    assert limits.flop_per_s("w4a16") == limits.flop_per_s("bfloat16")


def test_machine_limits_refuse_no_threads() -> None:
    with pytest.raises(ConfigError, match="num_threads must be at least 1"):
        measure_machine(0)


def test_cpu_is_read_from_proc_and_sys(tmp_path: Any) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text(
        "processor\t: 0\nmodel name\t: Some  CPU 9000\nflags\t\t: fpu avx2 amx_bf16 fma\n\n"
        "processor\t: 1\nmodel name\t: Another\nflags\t\t: avx512f\n"
    )
    for index, (level, kind, size, shared) in enumerate(
        [(1, "Data", "48K", "0"), (1, "Instruction", "9M", "0"), (3, "Unified", "8M", "0-3,8")]
    ):
        folder = tmp_path / f"sys/devices/system/cpu/cpu0/cache/index{index}"
        folder.mkdir(parents=True)
        rows = {"level": str(level), "type": kind, "size": size, "shared_cpu_list": shared}
        for name, text in rows.items():
            (folder / name).write_text(text + "\n")
    cpu = read_cpu(tmp_path)
    assert cpu.model == "Some CPU 9000"
    assert cpu.instruction_sets == ("fma", "avx2", "amx_bf16")
    assert [(cache.level, cache.size_bytes, cache.num_sharing) for cache in cpu.caches] == [
        (1, 49152, 1), (1, 9 * 2**20, 1), (3, 8 * 2**20, 5),
    ]  # fmt: skip
    assert cpu.last_level_bytes == 8 * 2**20


def test_cpu_of_a_system_without_proc_has_a_name(tmp_path: Any) -> None:
    cpu = read_cpu(tmp_path)
    assert cpu.model
    assert (cpu.instruction_sets, cpu.caches, cpu.last_level_bytes) == ((), (), 0)
