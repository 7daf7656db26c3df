"""What importing costs: no tensor library for the package, its help, or the half without tensors."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from importlib import util
from pathlib import Path

import pytest

import octavo

ROOT = Path(__file__).resolve().parents[2]
TENSOR_LIBRARIES = {"torch", "triton", "ray", "transformers", "safetensors", "numpy"}

TORCH_FREE = (
    "errors",
    "units",
    "arch",
    "config",
    "core",
    "planner",
    "codec",
    "api",
    "obs",
    "link",
    "server",
    "evals",
)
"""The half without tensors, as far as it is built. A new part of it is added here."""


def _modules_after(code: str) -> set[str]:
    """Top-level names in sys.modules after running `code` in a fresh interpreter."""
    listing = (
        "import json, sys; print('\\n' + json.dumps(sorted({m.partition('.')[0] for m in sys.modules})))"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{listing}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_the_probe_sees_torch() -> None:
    """Guards the tests below: a probe that finds nothing would pass them all."""
    assert "numpy" in _modules_after("import numpy")


def test_importing_octavo_imports_no_tensor_library() -> None:
    assert not _modules_after("import octavo") & TENSOR_LIBRARIES


def test_sampling_params_come_without_a_tensor_library() -> None:
    assert not _modules_after("from octavo import SamplingParams; SamplingParams()") & TENSOR_LIBRARIES


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["serve", "--help"], ["generate", "--help"]]
)
def test_help_imports_no_tensor_library(arguments: list[str]) -> None:
    code = f"""
from octavo.cli.main import main
try:
    main({arguments!r})
except SystemExit as end:
    assert not end.code, end.code
"""
    assert not _modules_after(code) & (TENSOR_LIBRARIES - {"numpy", "safetensors"})


@pytest.mark.parametrize("part", TORCH_FREE)
def test_the_half_without_tensors_imports_no_tensor_library(part: str) -> None:
    code = f"""
import importlib, pkgutil
package = importlib.import_module("octavo.{part}")
for found in pkgutil.walk_packages(getattr(package, "__path__", []), "octavo.{part}."):
    if not found.name.endswith("__main__"):
        importlib.import_module(found.name)
"""
    assert not _modules_after(code) & {"torch", "triton", "ray", "transformers"}


def test_every_public_name_can_be_imported() -> None:
    for name in octavo.__all__:
        assert getattr(octavo, name) is not None


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'LMM'"):
        octavo.LMM  # noqa: B018


def test_every_module_can_be_imported() -> None:
    """The last first, so that less leans on a lucky predecessor. Kernels for a GPU need what compiles them."""
    has_triton = util.find_spec("triton") is not None
    names = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in sorted((ROOT / "octavo").rglob("*.py"))
        if path.name != "__main__.py" and (has_triton or path.name != "cuda.py")
    ]
    for name in reversed(names):
        assert importlib.import_module(name).__name__ == name


def test_every_package_says_what_it_is() -> None:
    for path in (ROOT / "octavo").rglob("*.py"):
        first = path.read_text(encoding="utf-8").lstrip()
        assert first.startswith(('"""', 'r"""')), f"{path.relative_to(ROOT)} opens without a docstring"
