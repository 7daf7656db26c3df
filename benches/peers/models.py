"""Every form of a model that a peer reads, under .peers/models/; what is there already is left alone.

`python -m benches.peers.models [MODEL ...]` writes random weights of the shapes, and converts them with each
peer's own converter. A form that cannot be made is told and skipped.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from benches.peers.folders import write_folder
from benches.peers.subjects import LLAMA_SERVER, MODELS, PEERS, ROOT
from benches.peers.vllm_weights import write_checkpoint
from benches.serving.workloads import CONFIGS, shape_names

Make = Callable[[Path], None]
USUAL = ("qwen3-0.6b", "llama-3.2-1b")
"""Made where no model is named: larger shapes are for GPUs."""


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benches.peers.models", description=__doc__)
    parser.add_argument(
        "models", nargs="*", metavar="MODEL", help=f"of {', '.join(shape_names())} [{' '.join(USUAL)}]"
    )
    names = parser.parse_args(argv).models
    unknown = set(names) - set(shape_names())
    if unknown:
        parser.error(f"no shape is called {', '.join(sorted(unknown))}; there are {', '.join(shape_names())}")
    failed = 0
    for name in names or USUAL:
        for target, make in forms(name):
            try:
                write(target, make)
            except (OSError, ValueError, subprocess.CalledProcessError) as error:
                print(f"{name}/{target.name}: not made: {error}", file=sys.stderr)
                failed += 1
    return int(failed > 0)


def forms(name: str) -> Iterator[tuple[Path, Make]]:
    """Files and folders of one model, and how each is made; later ones are made of earlier ones."""
    folder = MODELS / name
    source = folder / "hf"
    yield source, partial(write_folder, CONFIGS / f"{name}.json")
    whole = folder / "gguf" / "bf16.gguf"
    for kind in ("bf16", "f16"):
        yield folder / "gguf" / f"{kind}.gguf", partial(_gguf, source, kind)
    for kind in ("q8_0", "q4_0"):
        yield folder / "gguf" / f"{kind}.gguf", partial(_quantize, whole, kind)
    for kind in ("fp16", "int8", "int4"):
        yield folder / f"openvino-{kind}", partial(_openvino, source, kind)
    for kind in ("int8", "int4"):
        yield folder / f"vllm-{kind}", partial(_vllm, source, kind)


def write(target: Path, make: Make) -> None:
    """Make a file or folder beside its place and move it there, so that what is there is whole."""
    if target.exists():
        return
    print(f"making {target.relative_to(MODELS)}", flush=True)
    part = target.with_name(f"part-{target.name}")
    if part.is_dir():
        shutil.rmtree(part)
    part.parent.mkdir(parents=True, exist_ok=True)
    make(part)
    part.rename(target)


def _gguf(source: Path, kind: str, target: Path) -> None:
    driver = [str(PEERS / "llama.cpp" / "bin" / "python"), "-m", "benches.peers.drivers.gguf"]
    _run(*driver, str(PEERS / "llama.cpp" / "src"), str(source), str(target), kind)


def _quantize(source: Path, kind: str, target: Path) -> None:
    quantizer = (PEERS / LLAMA_SERVER).with_name("llama-quantize")
    _run(str(quantizer), str(source), str(target), kind.upper(), "2")


def _openvino(source: Path, kind: str, target: Path) -> None:
    _run(
        str(PEERS / "openvino" / "bin" / "optimum-cli"), "export", "openvino", "--model", str(source),
        "--task", "text-generation-with-past", "--weight-format", kind, str(target),
    )  # fmt: skip


def _vllm(source: Path, kind: str, target: Path) -> None:
    write_checkpoint(source, target, kind)


def _run(*command: str) -> None:
    subprocess.run(command, cwd=ROOT, check=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
