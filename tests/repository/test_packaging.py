"""What an install brings along, and what the repository holds."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MAX_FILE_BYTES = 20 * 2**20
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CUDA_PACKAGE = re.compile(r"^(nvidia|cuda|triton|cupy|pytorch-triton)([-_].*)?$", re.IGNORECASE)


def _tracked() -> list[Path]:
    """Files git tracks, or, in an unpacked source archive, every file outside the usual build folders."""
    git = shutil.which("git")
    if git and (ROOT / ".git").exists():
        done = subprocess.run([git, "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
        return [ROOT / name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()]
    skipped = {".venv", "build", ".git"}
    return [
        path for path in ROOT.rglob("*") if path.is_file() and not skipped & set(path.relative_to(ROOT).parts)
    ]


def test_the_pattern_knows_cuda_packages() -> None:
    for name in ("nvidia-cublas-cu12", "triton", "cuda-bindings", "nvidia_cudnn_cu12"):
        assert CUDA_PACKAGE.match(name)
    for name in ("torch", "tritonclient", "cudagraph"):
        assert not CUDA_PACKAGE.match(name)


def test_a_machine_without_a_gpu_has_no_cuda_packages() -> None:
    if Path("/dev/nvidiactl").exists() or shutil.which("nvidia-smi"):
        pytest.skip("this machine has an NVIDIA GPU, so CUDA packages may be wanted")
    names = {distribution.metadata["Name"] for distribution in metadata.distributions()}
    found = sorted(name for name in names if name and CUDA_PACKAGE.match(name))
    assert not found, f"an install on a machine without a GPU brought {found}"


def test_every_dependency_says_why_it_is_there() -> None:
    lines = (ROOT / "pyproject.toml").read_text(encoding="utf-8").splitlines()
    begin = lines.index("dependencies = [")
    listed = lines[begin + 1 : lines.index("]", begin)]
    assert len(listed) == len(PROJECT["dependencies"])
    for line in listed:
        requirement, _, reason = line.partition("#")
        assert requirement.strip(), f"no requirement in {line.strip()}"
        assert len(reason.strip()) > 10, f"no reason beside {line.strip()}"


def test_transformers_is_for_tests_only() -> None:
    names = {re.match(r"[\w.-]+", line).group() for line in PROJECT["dependencies"]}  # type: ignore[union-attr]
    assert not names & {"transformers", "accelerate", "pytest", "openai"}


def test_every_import_is_a_declared_dependency() -> None:
    """Packages that octavo imports are in `dependencies` or an extra, under whatever name they are distributed."""
    import ast

    extras = [
        line for name, lines in PROJECT["optional-dependencies"].items() if name != "test" for line in lines
    ]
    declared = {
        re.match(r"[\w.-]+", line).group().lower().replace("_", "-")  # type: ignore[union-attr]
        for line in [*PROJECT["dependencies"], *extras]
    }
    providers = metadata.packages_distributions()
    imported: dict[str, Path] = {}
    for path in (ROOT / "octavo").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported.update({alias.name.partition(".")[0]: path for alias in node.names})
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                imported[node.module.partition(".")[0]] = path
    for name, path in imported.items():
        if name == "octavo" or name in sys.stdlib_module_names:
            continue
        names = {one.lower().replace("_", "-") for one in providers.get(name, [name])}
        assert names & declared, (
            f"{path.relative_to(ROOT)} imports {name}, which pyproject.toml does not list"
        )


def test_no_file_is_larger_than_20_mib() -> None:
    for path in _tracked():
        assert path.stat().st_size <= MAX_FILE_BYTES, (
            f"{path.relative_to(ROOT)} is {path.stat().st_size} bytes"
        )


def test_the_version_stands_in_one_place_and_agrees() -> None:
    import octavo

    assert PROJECT["version"] == octavo.__version__


def test_the_licence_is_the_one_named() -> None:
    assert PROJECT["license"] == "Apache-2.0"
    assert "Apache License" in (ROOT / "LICENSE").read_text(encoding="utf-8")[:200]


def test_the_import_contracts_hold() -> None:
    tool = shutil.which("lint-imports", path=str(Path(sys.executable).parent)) or shutil.which("lint-imports")
    assert tool, "lint-imports is not installed; it is one of the test extras"
    done = subprocess.run([tool], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
