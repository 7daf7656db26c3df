"""What the package's sources may not do, read from their syntax trees."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "octavo"

MAY_READ_CLOCKS = ("engine", "exec", "server", "cli")
CLOCKS = {
    *(
        f"time.{name}{suffix}"
        for name in ("time", "monotonic", "perf_counter", "process_time")
        for suffix in ("", "_ns")
    ),
    *("time.sleep", "datetime.datetime.now", "datetime.datetime.utcnow", "datetime.date.today"),
}
PICKLES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
RUNS_CODE = {"eval", "exec", "compile", "__import__"}


def _sources() -> list[Path]:
    found = sorted(PACKAGE.rglob("*.py"))
    assert len(found) > 50, "the package was not found"
    return found


def _dotted(node: ast.AST) -> str | None:
    """`a.b.c` of an attribute chain, or None."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        before = _dotted(node.value)
        return None if before is None else f"{before}.{node.attr}"
    return None


def _origins(tree: ast.AST) -> dict[str, str]:
    """Local name -> what it was imported as, so that `from time import monotonic as m` is seen through."""
    origins: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                name = alias.asname or alias.name.partition(".")[0]
                origins[name] = alias.name if alias.asname else name
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            for alias in node.names:
                origins[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return origins


def uses(source: str) -> Iterator[tuple[int, str]]:
    """(line, full name) of every imported or built-in name that a source reads."""
    tree = ast.parse(source)
    origins = _origins(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Name | ast.Attribute):
            dotted = _dotted(node)
            if dotted is not None:
                first, _, rest = dotted.partition(".")
                origin = origins.get(first, first)
                yield node.lineno, f"{origin}.{rest}" if rest else origin


def imports(source: str) -> Iterator[tuple[int, str]]:
    """(line, module) of every import."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.lineno, node.module


def test_the_reader_sees_through_imports() -> None:
    source = "from time import monotonic as now\nimport os as system\nnow()\nsystem.environ['A']\n"
    assert {(3, "time.monotonic"), (4, "os.environ")} <= set(uses(source))


@pytest.mark.parametrize("path", _sources(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_source(path: Path) -> None:
    """Pickles, code from texts, the environment, clocks and random numbers: see the checks below."""
    source = path.read_text(encoding="utf-8")
    relative = path.relative_to(PACKAGE)
    where = relative.as_posix()
    names = set(uses(source))
    _no_pickle(where, source, names)
    _no_code_from_texts(where, source, names)
    if where != "cli/env.py":
        _no_environment(where, names)
    if relative.parts[0] not in MAY_READ_CLOCKS:
        _no_clock(where, source, names)


DATES = {
    *(
        "server/storage.py",
        "server/responses.py",
        "server/files.py",
        "server/writer.py",
        "server/batch_life.py",
        "server/recordings.py",
    ),
    *("server/batch_runner.py", "server/front.py", "server/gate.py", "server/run.py", "server/usage.py"),
    *(
        "server/public_prefixes.py",
        "server/turn.py",
        "engine/llm.py",
        "cli/batch.py",
        "cli/generate.py",
        "obs/log.py",
    ),
}
"""Who says when something was made, or ends by the calendar, or what the date is in a chat template."""


def test_wall_time_is_read_only_where_a_date_is_meant() -> None:
    """A clock that jumps changes dates; what waits, times out or counts per second goes by the monotonic one."""
    readers = {
        path.relative_to(PACKAGE).as_posix()
        for path in _sources()
        for _, name in uses(path.read_text(encoding="utf-8"))
        if name in ("time.time", "time.time_ns", "datetime.datetime.now", "datetime.datetime.utcnow")
    }
    assert readers <= DATES, sorted(readers - DATES)


def _no_pickle(where: str, source: str, names: set[tuple[int, str]]) -> None:
    for line, module in imports(source):
        assert module.partition(".")[0] not in PICKLES, f"octavo/{where}:{line} imports {module}"
    for line, name in names:
        assert name not in ("torch.load", "torch.save", "numpy.load"), f"octavo/{where}:{line} calls {name}"


def _no_code_from_texts(where: str, source: str, names: set[tuple[int, str]]) -> None:
    called = {node.func.id for node in ast.walk(ast.parse(source)) if _is_plain_call(node)}  # type: ignore[attr-defined]
    assert not called & RUNS_CODE, f"octavo/{where} calls {sorted(called & RUNS_CODE)}"
    for line, name in names:
        assert name not in ("os.system", "os.popen"), f"octavo/{where}:{line} calls {name}"
        assert not name.endswith("trust_remote_code"), f"octavo/{where}:{line} names {name}"


def _is_plain_call(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name)


def _no_environment(where: str, names: set[tuple[int, str]]) -> None:
    for line, name in names:
        assert name.split(".")[:2] not in (["os", "environ"], ["os", "getenv"], ["os", "putenv"]), (
            f"octavo/{where}:{line} reads the environment; only cli/env.py does"
        )


def _no_clock(where: str, source: str, names: set[tuple[int, str]]) -> None:
    for line, name in names:
        assert name not in CLOCKS, f"octavo/{where}:{line} reads a clock ({name}); time is an argument there"
        if name.startswith("random."):
            assert name.startswith("random.Random"), (
                f"octavo/{where}:{line} draws from {name}; bring a seeded one"
            )
    for line, module in imports(source):
        assert module != "secrets", f"octavo/{where}:{line} imports {module}"
