"""What the processor is: its name, its caches, and the instruction sets that kernels care about."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path

INSTRUCTION_SETS = (
    "sse4_2", "avx", "f16c", "fma", "avx2", "avx_vnni",
    "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx512_bf16", "avx512_fp16",
    "amx_tile", "amx_int8", "amx_bf16", "amx_fp16",
    "asimd", "asimdhp", "asimddp", "bf16", "i8mm", "sve", "sve2", "sme",
)  # fmt: skip
"""Names as the Linux kernel prints them, x86 then Arm, each list from old to new."""


@dataclass(frozen=True, slots=True)
class Cache:
    """One cache as the first core sees it.

    kind         "data", "instruction" or "unified"
    num_sharing  logical processors that share it
    """

    level: int
    kind: str
    size_bytes: int
    num_sharing: int


@dataclass(frozen=True, slots=True)
class Cpu:
    """instruction_sets holds only names of INSTRUCTION_SETS, in that order."""

    model: str
    architecture: str
    instruction_sets: tuple[str, ...]
    caches: tuple[Cache, ...]

    @property
    def last_level_bytes(self) -> int:
        """Size of the largest cache that holds data; 0 when none is known."""
        return max((cache.size_bytes for cache in self.caches if cache.kind != "instruction"), default=0)


def read_cpu(root: Path = Path("/")) -> Cpu:
    """This processor, from /proc and /sys. Without them only the names that Python knows are filled in.

    root  lets tests lay out their own /proc and /sys
    """
    rows = _first_processor(root / "proc/cpuinfo")
    flags = set((rows.get("flags") or rows.get("Features") or "").split())
    architecture = platform.machine()
    model = rows.get("model name") or rows.get("Model") or platform.processor() or architecture
    sets = tuple(name for name in INSTRUCTION_SETS if name in flags)
    return Cpu(
        " ".join(model.split()), architecture, sets, _caches(root / "sys/devices/system/cpu/cpu0/cache")
    )


def _first_processor(path: Path) -> dict[str, str]:
    """`name : value` rows up to the first empty line; later processors repeat them."""
    rows: dict[str, str] = {}
    if not path.is_file():
        return rows
    for line in path.read_text().splitlines():
        if not line.strip() and rows:
            break
        name, _, value = line.partition(":")
        rows[name.strip()] = value.strip()
    return rows


def _caches(folder: Path) -> tuple[Cache, ...]:
    found = []
    for index in sorted(folder.glob("index*")):
        size, level, kind = (index / "size", index / "level", index / "type")
        if not (size.is_file() and level.is_file() and kind.is_file()):
            continue  # some virtual machines list caches without their sizes
        shared = index / "shared_cpu_list"
        num_sharing = _count_cpus(shared.read_text()) if shared.is_file() else 1
        found.append(
            Cache(
                int(level.read_text()), kind.read_text().strip().lower(), _size(size.read_text()), num_sharing
            )
        )
    return tuple(sorted(found, key=lambda cache: (cache.level, cache.kind)))


def _size(text: str) -> int:
    """`"32768K"` -> 33554432."""
    text = text.strip()
    factor = {"K": 2**10, "M": 2**20, "G": 2**30}.get(text[-1:], 1)
    return int(text.rstrip("KMG")) * factor


def _count_cpus(text: str) -> int:
    """`"0-3,8"` -> 5."""
    count = 0
    for piece in text.strip().split(","):
        low, _, high = piece.partition("-")
        count += int(high or low) - int(low) + 1
    return count
