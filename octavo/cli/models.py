"""Models that are here: bundled ones, and those the hub client has fetched."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from octavo import bundled
from octavo.arch import Arch
from octavo.cli import output
from octavo.errors import LoadError
from octavo.units import format_bytes, format_count


@dataclass(frozen=True, slots=True)
class Found:
    """A model folder. `problem` says why it cannot be served, None when nothing speaks against it."""

    name: str
    origin: str
    path: str
    family: str | None
    parameters: int | None
    max_model_len: int | None
    weight_bytes: int
    problem: str | None


def configure(parser: argparse.ArgumentParser) -> None:
    output.add_json(parser)


def run(args: argparse.Namespace) -> int:
    found = [*_bundled(), *_fetched()]
    if args.json:
        output.print_json([asdict(one) for one in found])
        return 0
    rows = [
        [
            one.name,
            one.origin,
            one.family or "?",
            "?" if one.parameters is None else format_count(one.parameters),
            "?" if one.max_model_len is None else one.max_model_len,
            format_bytes(one.weight_bytes),
            one.problem or "",
        ]
        for one in found
    ]
    output.print_table(
        ["name", "origin", "family", "parameters", "context", "on disk", ""], rows, right=[3, 4, 5]
    )
    return 0


def check_early(model: str) -> None:
    """Refuse a model that is nowhere, or of no known kind, before seconds go into loading libraries.

    Hub ids are left to whoever loads, who fetches them. Raises LoadError.
    """
    from octavo.engine.locate import HUB_ID, locate

    if Path(model).expanduser().exists() or not HUB_ID.fullmatch(model):
        Arch.from_file(locate(model).config)


def _bundled() -> Iterator[Found]:
    for name in bundled.names():
        yield look(name, "bundled", bundled.path(name))


def _fetched() -> Iterator[Found]:
    """Model repositories in the hub client's cache; none when there is no cache yet."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        cache = scan_cache_dir()
    except CacheNotFound:
        return
    for repo in sorted(cache.repos, key=lambda repo: repo.repo_id):
        if repo.repo_type == "model" and repo.revisions:
            newest = max(repo.revisions, key=lambda revision: revision.last_modified)
            yield look(repo.repo_id, "hub cache", Path(newest.snapshot_path))


def look(name: str, origin: str, folder: Path) -> Found:
    """What can be told from a folder without reading weights."""
    weight_bytes = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    try:
        arch = Arch.from_file(folder / "config.json")
    except LoadError as error:
        return Found(name, origin, str(folder), None, None, None, weight_bytes, str(error))
    problem = None if weight_bytes else "no safetensors files"
    family, size = arch.family, arch.num_parameters()
    return Found(name, origin, str(folder), family, size, arch.max_positions, weight_bytes, problem)
