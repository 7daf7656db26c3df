"""Arrivals by client and time of day, from rates that were measured: whose load swells when, and how bursty it is.

A CSV of `client,window_start_s,rate_rps,iat_cv`, other columns aside, as ServeGen's clients are described (arXiv
2505.09999): in each window a client's requests are a renewal process, here with gamma-distributed gaps of that rate and
coefficient of variation. A file of several models has a column `model`.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from octavo.errors import ConfigError
from octavo.sim.lengths import Constant, Gamma, Gaps
from octavo.sim.timing import NS_PER_S
from octavo.sim.traces import Fields, csv_rows, opened, present, seconds
from octavo.sim.workload import Job, Maker


@dataclass(frozen=True, slots=True)
class Window:
    """What one client sends from one moment to another."""

    client: str
    start_s: float
    end_s: float
    rate_per_s: float
    cv: float

    def gaps(self) -> Gaps:
        return Gamma(self.rate_per_s, self.cv) if self.cv > 0 else Constant(self.rate_per_s)


def read_client_rates(path: str | Path, model: str | None = None) -> list[Window]:
    """The windows of a file, of one model where it has several. Windows without requests are left out.

    Raises ConfigError that names the line and the field.
    """
    path = Path(path)
    found: dict[str, list[tuple[float, float, float]]] = {}
    try:
        with opened(path) as file:
            for number, fields in csv_rows(file):
                if model is None or fields.get("model") == model:
                    _read(fields, f"{path}, line {number}", found)
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise ConfigError(f"the rates {path} cannot be read: {error}") from error
    windows = [window for client, ones in found.items() for window in _windows(client, sorted(ones))]
    if not windows:
        of = "" if model is None else f" of the model {model!r}"
        raise ConfigError(f"the rates {path} hold no requests{of}")
    return windows


def _read(fields: Fields, where: str, found: dict[str, list[tuple[float, float, float]]]) -> None:
    client = str(present(fields, "client", where))
    values = [seconds(fields, name, where) for name in ("window_start_s", "rate_rps", "iat_cv")]
    found.setdefault(client, []).append((values[0], values[1], values[2]))


def _windows(client: str, ones: Sequence[tuple[float, float, float]]) -> Iterator[Window]:
    """A window ends where the next begins; the last is as long as the one before it."""
    for place, (start_s, rate, cv) in enumerate(ones):
        if place + 1 < len(ones):
            end_s = ones[place + 1][0]
        else:
            end_s = 2 * start_s - ones[place - 1][0] if place else start_s + 600.0
        if rate > 0 and end_s > start_s:
            yield Window(client, start_s, end_s, rate, cv)


class Clients:
    """The clients of some windows as a workload; what they ask for is the maker's mix.

    duration_s  ends it; None plays all windows
    """

    follows = False

    def __init__(
        self, windows: Sequence[Window], maker: Maker, seed: int, duration_s: float | None = None
    ) -> None:
        self._windows = windows
        self._maker = maker
        self._seed = seed
        self._end_s = float("inf") if duration_s is None else duration_s

    @property
    def shares(self) -> bool:
        return self._maker.mix.prefixes is not None

    def arrivals(self) -> Iterator[Job]:
        self._maker.restart()
        by_client: dict[str, list[Window]] = {}
        for window in self._windows:
            by_client.setdefault(window.client, []).append(window)
        streams = [self._times(client, ones) for client, ones in sorted(by_client.items())]
        for at_s, client in heapq.merge(*streams):
            job = self._maker.job(round(at_s * NS_PER_S))
            job.client = client
            yield job

    def after(self, job: Job, now_ns: int, *, is_answered: bool) -> Job | None:  # noqa: ARG002
        return None

    def _times(self, client: str, windows: Sequence[Window]) -> Iterator[tuple[float, str]]:
        rng = random.Random(f"octavo client {self._seed} {client}")
        for window in windows:
            gaps = window.gaps()
            at_s = window.start_s + rng.random() * gaps.draw_s(rng)
            while at_s < min(window.end_s, self._end_s):
                yield at_s, client
                at_s += gaps.draw_s(rng)
