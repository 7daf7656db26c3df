"""What a bench leaves behind: one JSON file that says what was asked, what was measured, and on what."""

from __future__ import annotations

import platform
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from octavo import __version__
from octavo.engine.cpu import Cpu
from octavo.engine.measure import MachineLimits, Spread

RESULTS = Path(__file__).parent / "results"
FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Series:
    """Repeats of one figure of one subject, in order, and what they come to."""

    median: float
    iqr: float
    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Sequence[float]) -> Series:
        spread = Spread(tuple(float(value) for value in values))
        return cls(median=spread.median, iqr=spread.iqr, values=spread.values)


@dataclass(frozen=True, kw_only=True)
class Accelerator:
    """A device that subjects ran on, and what it reached in the same run.

    copy_bytes_per_s  of a large copy, bytes read and bytes written
    bf16_flop_per_s   of a large square product; a multiply-add counts as two operations
    """

    name: str
    memory_bytes: int
    copy_bytes_per_s: float
    bf16_flop_per_s: float


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """A class of machine, and what the one at hand reached in the same run. Names no host.

    other_cores  cores that everything else on the machine kept busy while subjects ran; None where unknown
    accelerator  where subjects ran on one
    """

    cpu: Cpu
    num_cores: int
    num_threads: int
    total_memory_bytes: int
    limits: dict[str, float]
    other_cores: float | None = None
    accelerator: Accelerator | None = None

    @classmethod
    def of(
        cls, limits: MachineLimits, other_cores: float | None = None, accelerator: Accelerator | None = None
    ) -> Hardware:
        rates = {
            name: value
            for name, value in asdict(limits).items()
            if name.endswith("_per_s") and value is not None
        }
        return cls(
            cpu=limits.cpu,
            num_cores=limits.num_cores,
            num_threads=limits.num_threads,
            total_memory_bytes=limits.total_memory_bytes,
            limits=rates,
            other_cores=other_cores,
            accelerator=accelerator,
        )

    @property
    def slug(self) -> str:
        """Folder of the records of this class of machine."""
        if self.accelerator is not None:
            return slug(self.accelerator.name)
        newest = self.cpu.instruction_sets[-1:] or (self.cpu.architecture,)
        return slug(f"{self.cpu.model} {self.num_cores} cores {newest[0]}")


@dataclass(frozen=True, kw_only=True)
class Record:
    """One answered question.

    correct    always true: nothing is timed before `gate` has passed
    gate       what was found right
    figure     the figure that answers, and whether "higher" or "lower" is better
    subjects   subject -> figure -> repeats; the other figures stand beside the one that answers
    notes      what a reader must know: sizes that were changed, repeats that were saved
    """

    question: str
    slug: str
    correct: bool
    gate: str
    figure: str
    unit: str
    better: str
    shape: dict[str, Any]
    repeats: int
    warmup: int
    seeds: dict[str, Any]
    subjects: dict[str, dict[str, Series]]
    hardware: Hardware
    versions: dict[str, str]
    commit: str
    command: str
    date: str
    notes: list[str] = field(default_factory=list)
    format: int = FORMAT


def write(record: Record, root: Path = RESULTS) -> Path:
    """Store a record under `root`/hardware/date-slug.json; a second one of the same day gets a number."""
    folder = root / record.hardware.slug
    folder.mkdir(parents=True, exist_ok=True)
    text = msgspec.json.format(msgspec.json.encode(record), indent=1)
    number = 1
    while True:
        suffix = "" if number == 1 else f"-{number}"
        path = folder / f"{record.date}-{record.slug}{suffix}.json"
        try:
            with path.open("xb") as file:
                file.write(text + b"\n")
        except FileExistsError:
            number += 1
        else:
            return path


def read(path: Path) -> Record:
    """Read a record. Raises ValueError that names the file when it holds something else."""
    try:
        record = msgspec.json.decode(path.read_bytes(), type=Record)
    except msgspec.DecodeError as error:
        raise ValueError(f"{path} is no bench record: {error}") from None
    if record.format != FORMAT:
        raise ValueError(f"{path} has record format {record.format}; this reads format {FORMAT}")
    return record


def slug(text: str) -> str:
    """`"AMD EPYC 2 cores"` -> `"amd-epyc-2-cores"`; dots stay, so that "0.6b" keeps its meaning."""
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-")


def versions() -> dict[str, str]:
    """What the figures depend on, beside the hardware and our own commit."""
    import torch

    return {
        "octavo": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "system": platform.system(),
    }


def command(module: str, arguments: Sequence[str]) -> str:
    """The command line without the folders of whoever ran it: of a path only its last part is kept."""
    return " ".join(["python -m", module, *(_nameless(argument) for argument in arguments)])


def _nameless(argument: str) -> str:
    flag, equals, value = argument.partition("=")
    if equals:
        return f"{flag}={_nameless(value)}"
    return Path(argument).name if "/" in argument or "\\" in argument else argument


def commit(root: Path = Path(__file__).parent.parent) -> str:
    """The commit that was measured; "-changed" is added when sources differ from it, "unknown" outside git."""
    try:
        head = _git(root, "rev-parse", "HEAD")
        status = _git(root, "status", "--porcelain", "--", "octavo", "csrc", "benches", ":!benches/results")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + ("-changed" if status else "")


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def table(record: Record) -> str:
    """The record's figures as lines for a terminal."""
    lines = [record.question]
    for name, figures in record.subjects.items():
        main = figures[record.figure]
        lines.append(f"  {name}: {main.median:.4g} {record.unit} (iqr {main.iqr:.2g}, n={len(main.values)})")
        beside = [f"{key} {one.median:.4g}" for key, one in figures.items() if key != record.figure]
        if beside:
            lines.append("    " + ", ".join(beside))
    lines += [f"  note: {note}" for note in record.notes]
    return "\n".join(lines)


def show(record: Record, path: Path | None, stream: Any = None) -> None:
    """Print a record, and where it was stored."""
    print(table(record), file=stream or sys.stdout)
    if path is not None:
        print(f"  record: {path.name}", file=stream or sys.stdout)


def figures_of(record: Record, subject: str) -> Mapping[str, Series]:
    """Raises ValueError that lists the subjects there are."""
    if subject not in record.subjects:
        raise ValueError(f"the record has no subject {subject!r}; it has: {', '.join(record.subjects)}")
    return record.subjects[subject]
