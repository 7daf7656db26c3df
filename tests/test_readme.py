"""The README's blocks run as they stand, and what it points to is there.

Every ```bash and ```python block is run in a fresh process. `127.0.0.1:8000` in a block is replaced by the address
of a server started here, as `make serve` would start it; `octavo` is this checkout's.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from octavo import bundled

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
ADDRESS = "127.0.0.1:8000"
TIMEOUT_S = 280


@dataclass(frozen=True)
class Block:
    """A fenced block and the line it begins on."""

    language: str
    text: str
    line: int

    @property
    def needs_server(self) -> bool:
        return ADDRESS in self.text


def blocks(path: Path) -> list[Block]:
    found, language, begun, lines = [], None, 0, []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.startswith("```"):
            lines.append(line)
        elif language is None:
            language, begun, lines = line[3:].strip(), number, []
        else:
            found.append(Block(language, "\n".join(lines) + "\n", begun))
            language = None
    assert language is None, f"{path.name}: the block of line {begun} is not closed"
    return found


BLOCKS = [block for block in blocks(README) if block.language in ("bash", "python")]


@pytest.fixture(scope="module", autouse=True)
def _model_is_here() -> None:
    if bundled.DEFAULT not in bundled.names():
        pytest.skip("the bundled model is not in this checkout")


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """PATH with an `octavo` of this checkout in front, on one thread, as other tests run beside this one; a proxy is
    not asked for the own machine.
    """
    folder = tmp_path_factory.mktemp("bin")
    for name, command in (("octavo", f"{sys.executable} -m octavo"), ("python", sys.executable)):
        script = folder / name
        script.write_text(f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec {command} "$@"\n')
        script.chmod(0o755)
    return dict(os.environ) | {
        "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "OCTAVO_NUM_THREADS": "1",
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
    }


@pytest.fixture(scope="module")
def server(environment: dict[str, str]) -> Iterator[str]:
    """Host and port of a running `octavo serve`, the command behind `make serve`."""
    command = ["octavo", "serve", "--port", "0", "--memory-limit", "1GiB"]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.fullmatch(r"ready: http://(127\.0\.0\.1:\d+) \(model quire, kv \d+ blocks\)\n", line)
        assert found, f"expected the ready line, got {line!r}"
        yield found[1]
        process.terminate()
        assert process.wait(timeout=60) == 0


def run(block: Block, environment: dict[str, str], address: str) -> str:
    text = block.text.replace(ADDRESS, address)
    command = (
        ["bash", "-euo", "pipefail", "-c", text] if block.language == "bash" else [sys.executable, "-c", text]
    )
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S
    )
    assert done.returncode == 0, f"README.md line {block.line}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.timeout(300)
@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: f"line-{block.line}")
def test_block(block: Block, environment: dict[str, str], request: pytest.FixtureRequest) -> None:
    if "curl" in block.text and not shutil.which("curl"):
        pytest.skip("curl is not installed here")
    address = request.getfixturevalue("server") if block.needs_server else ADDRESS
    printed = run(block, environment, address)
    assert printed.strip(), f"README.md line {block.line} prints nothing"
    if "curl" in block.text:
        answer = json.loads(printed)
        assert answer["choices"][0]["message"]["content"].strip()
        assert answer["usage"]["completion_tokens"] > 0


def test_questions_it_asks_are_among_those_the_model_was_trained_on() -> None:
    """A first question that is answered with an invention would be a poor welcome."""
    with gzip.open(bundled.path() / "eval" / "stdlib_qa.jsonl.gz", "rt", encoding="utf-8") as lines:
        known = {json.loads(line)["question"] for line in lines}
    asked = re.findall(r"\"(What does [\w.]+ do\?)\"", "".join(block.text for block in BLOCKS))
    assert len(asked) >= 3
    assert set(asked) <= known


def test_the_readme_shows_every_way_in() -> None:
    whole = "".join(block.text for block in BLOCKS)
    for wanted in (
        "curl",
        "from openai import OpenAI",
        "from octavo import LLM",
        "octavo bench",
        "octavo eval",
        "octavo doctor",
    ):
        assert wanted in whole, f"no block shows {wanted}"


def test_make_targets_it_names_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    shown = "".join(block.text for block in blocks(README) if block.language == "text")
    named = set(re.findall(r"^make ([a-z-]+)", shown, re.MULTILINE))
    assert {"serve", "test"} <= named <= targets


PAGES = [
    README,
    *sorted((ROOT / "docs").rglob("*.md")),
    ROOT / "lab/README.md",
    ROOT / "benches/README.md",
    ROOT / "CONTRIBUTING.md",
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
        if not re.match(r"[a-z]+:", target):
            assert (page.parent / target).exists(), f"{page.relative_to(ROOT)} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_it_names_exist(page: Path) -> None:
    """Paths in backticks that name a file of the repository: a page that speaks of a file that is gone is wrong."""
    text = page.read_text(encoding="utf-8")
    for name in re.findall(r"`((?:octavo|tests|docs|lab|benches|csrc)/[\w./-]+\.\w+)`", text):
        assert (ROOT / name).exists(), f"{page.relative_to(ROOT)} names {name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_figure_is_missing(page: Path) -> None:
    left = re.findall(r"@[A-Z_]+@|^FIGURES$", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert not left, f"{page.relative_to(ROOT)} still waits for {left}"
