"""What the machine says it has, from files laid out as the kernel lays them out."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from octavo.engine.machine import read_machine

GIB = 2**30


def lay_out(root: Path, **files: str) -> Path:
    """`root` with proc/meminfo and whatever cgroup files are named (dots as double underscores)."""
    (root / "proc").mkdir()
    (root / "proc/meminfo").write_text(
        f"MemTotal:       {64 * GIB // 1024} kB\nMemFree:         1024 kB\n"
        f"MemAvailable:   {40 * GIB // 1024} kB\nHugePages_Total:       0\n"
    )
    (root / "sys/fs/cgroup").mkdir(parents=True)
    for name, text in files.items():
        (root / "sys/fs/cgroup" / name.replace("__", ".")).write_text(text)
    return root


def test_without_a_limit_the_machine_is_what_meminfo_says(tmp_path: Path) -> None:
    machine = read_machine(lay_out(tmp_path))
    assert (machine.total_bytes, machine.available_bytes) == (64 * GIB, 40 * GIB)
    assert machine.num_cores == len(os.sched_getaffinity(0))


def test_a_limit_of_max_is_none(tmp_path: Path) -> None:
    machine = read_machine(
        lay_out(tmp_path, memory__max="max\n", memory__current="123\n", cpu__max="max 100000\n")
    )
    assert (machine.total_bytes, machine.available_bytes) == (64 * GIB, 40 * GIB)
    assert machine.num_cores == len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("limit", "used", "total", "available"),
    [
        (8 * GIB, 3 * GIB, 8 * GIB, 5 * GIB),
        (8 * GIB, 9 * GIB, 8 * GIB, 0),
        (60 * GIB, 1 * GIB, 60 * GIB, 40 * GIB),
        (128 * GIB, 100 * GIB, 64 * GIB, 28 * GIB),
    ],
)
def test_a_cgroup_limits_memory(tmp_path: Path, limit: int, used: int, total: int, available: int) -> None:
    machine = read_machine(lay_out(tmp_path, memory__max=f"{limit}\n", memory__current=f"{used}\n"))
    assert (machine.total_bytes, machine.available_bytes) == (total, available)


@pytest.mark.parametrize(
    ("quota", "cores"), [("50000 100000", 1), ("100000 100000", 1), ("10000000 100000", None)]
)
def test_a_cgroup_quota_limits_cores(tmp_path: Path, quota: str, cores: int | None) -> None:
    """Whole cores only, at least one; a quota beyond the affinity changes nothing."""
    machine = read_machine(lay_out(tmp_path, cpu__max=f"{quota}\n"))
    assert machine.num_cores == (cores or len(os.sched_getaffinity(0)))


def test_this_machine_can_be_read() -> None:
    machine = read_machine()
    assert machine.num_cores >= 1
    assert 0 < machine.available_bytes <= machine.total_bytes


def test_without_proc_the_system_call_answers(tmp_path: Path) -> None:
    machine = read_machine(tmp_path)
    assert machine.total_bytes == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
