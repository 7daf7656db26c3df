"""What must be right before anything is timed: suites in processes of their own, a model on the device's kernels."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from benches.harness import GateFailed
from octavo.core.sequence import SamplingParams
from octavo.core.step import Output, Slice, Step
from octavo.decode.logprobs import Choice
from octavo.exec.batch import Held, build
from octavo.exec.draws import draw_together
from octavo.exec.executor import Start
from octavo.exec.graphs import Capture, Graphs, Sizes
from octavo.exec.runner import Payload, Runner
from octavo.kv.pool import KvPool
from octavo.models.loader import load
from octavo.models.model import Model

ROOT = Path(__file__).parents[2]
SUITES = (
    # most of the first is compiling
    ("every Triton kernel against its oracle", "tests/kernels/triton_cases.py -n 8"),
    ("the references on the device", "tests/kernels/test_cuda.py"),
    ("the library's products on the device", "tests/kernels/test_library.py"),
    ("draws on the device", "tests/decode/test_device.py"),
    ("equal bits in any company", "tests/engine/test_exact.py"),
    ("equal bits behind running steps", "tests/engine/test_behind.py"),
    ("parity with transformers", "tests/parity --model-device=cuda"),
)
PYTEST = ("-q", "-x", "-m", "not slow", "-p", "no:cacheprovider", "-o", "addopts=", "--import-mode=importlib")
BLOCK_TOKENS = 16
LENGTHS = (300, 1, 17, 130, 16, 513)
NUM_DECODES = 12


def run_suites(*, only_collect: bool, within_s: float) -> list[str]:
    """Runs the suites one after another; returns what each said last.

    Raises GateFailed at the first that fails, or that has not ended when the time is over.
    """
    said = []
    ends_s = time.perf_counter() + within_s
    for what, path in SUITES:
        command = [sys.executable, "-m", "pytest", *path.split(), *PYTEST]
        if only_collect and "triton_cases.py" in path:
            command = [sys.executable, "-m", "compileall", "-q", path.split()[0]]
        elif only_collect:
            command.append("--collect-only")
        print(f"  {what}: {path}", file=sys.stderr, flush=True)
        left_s = max(ends_s - time.perf_counter(), 0.1)
        try:
            done = subprocess.run(
                command, cwd=ROOT, env=os.environ.copy(), capture_output=True, text=True, timeout=left_s
            )
        except subprocess.TimeoutExpired:
            raise GateFailed(
                f"{what}: {path} had not ended after {within_s:g} s; give more, or --no-checks"
            ) from None
        if done.returncode:
            raise GateFailed(f"{what}: {path} failed\n{done.stdout[-3000:]}{done.stderr[-1000:]}")
        said.append(f"{what}: {(done.stdout.strip().splitlines() or ['compiled'])[-1]}")
    return said


def check_model(
    folder: Path,
    device: torch.device,
    capture: Capture | None,
    quantization: str | None = None,
    *,
    has_fp8_kv: bool = False,
) -> str:
    """A model's decodes op by op, launched ahead, recorded and alone: the same bits. Raises GateFailed.

    capture  records steps; None: as CUDA does
    """
    model = load(folder, device=device, kernels="reference", quantization=quantization, has_fp8_kv=has_fp8_kv)
    together = _decoded(model)
    for what, found in (
        ("launched ahead", _decoded(model, ahead=True)),
        ("recorded", _decoded(model, ahead=True, recorded=True, capture=capture)),
    ):
        if found != together:
            raise GateFailed(f"steps that are {what} give other tokens or log-probabilities than one by one")
    for number in (0, 3):
        alone = _decoded(model, only=number)
        if alone[number] != together[number]:
            raise GateFailed(f"a prompt of {LENGTHS[number]} tokens gives other bits alone than in company")
    weights = f", weights {quantization}" if quantization else ""
    weights += ", keys and values fp8" if has_fp8_kv else ""
    return f"{len(LENGTHS)} sequences{weights}: equal bits one by one, launched ahead, recorded, alone and in company"


def check_rounding(
    folder: Path, device: torch.device, quantization: str | None = None, *, batch_invariant: bool = True
) -> str:
    """Logits of the device's kernels are about as far from float32 as those of the references are.

    Both round at the same places, so neither may be twice as far as the other; all have the same codes where weights
    are rounded. Raises GateFailed.

    batch_invariant  of the device's kernels
    """
    exact, rounded, found = (
        _logits(
            load(
                folder, dtype=dtype, device=where, kernels="reference", quantization=quantization,
                batch_invariant=keeps,
            )
        )
        for dtype, where, keeps in (
            ("float32", device, True), ("bfloat16", "cpu", True), ("bfloat16", device, batch_invariant),
        )
    )  # fmt: skip
    scale = exact.double().square().mean().sqrt()
    far, allowed = ((one.double() - exact).square().mean().sqrt() / scale for one in (found, rounded))
    if not float(far) <= 2 * float(allowed):
        raise GateFailed(f"logits are {float(far):.2e} from float32, the reference's {float(allowed):.2e}")
    weights = f"with weights {quantization} " if quantization else ""
    weights += "" if batch_invariant else "with bits that may depend on the batch "
    return f"{weights}logits are {float(far):.2e} from float32, the reference's {float(allowed):.2e} (relative RMS)"


def _decoded(
    model: Model,
    *,
    ahead: bool = False,
    recorded: bool = False,
    capture: Capture | None = None,
    only: int | None = None,
) -> dict[int, list[tuple[Choice, ...]]]:
    """Choices of each sequence: after its prompt, then NUM_DECODES times one token further."""
    lengths = LENGTHS
    num_blocks = sum(-(-(length + NUM_DECODES) // BLOCK_TOKENS) for length in lengths) + 1
    kv = KvPool(model.kv_layout(BLOCK_TOKENS), model.arch.num_layers, num_blocks, model.device)
    kv.poison(range(num_blocks))
    forward = None
    if recorded:
        sizes = Sizes(len(lengths), num_blocks * BLOCK_TOKENS, max(lengths) // BLOCK_TOKENS + 2)
        forward = Graphs(model, kv, sizes, capture=capture)
    runner = Runner(model, kv, forward=forward, draw=draw_together(model))
    free = list(range(1, num_blocks))
    random.Random(1).shuffle(free)
    chosen = range(len(lengths)) if only is None else [only]
    tables: dict[int, int] = dict.fromkeys(chosen, 0)
    found: dict[int, list[tuple[Choice, ...]]] = {number: [] for number in chosen}
    pending = []
    for n in range(NUM_DECODES + 1):
        slices, starts = [], []
        for number in chosen:
            length = lengths[number]
            start, count = (0, length) if n == 0 else (length + n - 1, 1)
            if n == 0:
                starts.append(_start(number, length, model.arch.vocab_size))
            fresh = -(-(start + count) // BLOCK_TOKENS) - tables[number]
            tables[number] += fresh
            blocks = tuple(free.pop() for _ in range(fresh))
            slices.append(Slice(number, 0, start, count, blocks, samples=1))
        pending.append(runner.launch(Step(n, tuple(slices)), starts))
        if not ahead or len(pending) > 1:
            _note(pending.pop(0).result().outputs, found)
    for left in pending:
        _note(left.result().outputs, found)
    return found


def _note(outputs: Sequence[Output], found: dict[int, list[tuple[Choice, ...]]]) -> None:
    for output in outputs:
        assert isinstance(output.payload, Payload), output.error
        found[output.seq_id].append(output.payload.choices)


def _start(number: int, length: int, vocab_size: int) -> Start:
    draw = random.Random(number)
    params = SamplingParams(temperature=0.0 if number % 2 else 0.8, top_p=0.95, logprobs=3, max_tokens=None)
    return Start(
        seq_id=number, epoch=0, tokens=tuple(draw.randrange(vocab_size) for _ in range(length)),
        num_prompt=length, params=params, index=0, seed=number, end_token_ids=frozenset(),
    )  # fmt: skip


def _logits(model: Model) -> Tensor:
    """Of every position of one prompt, on the CPU."""
    start = _start(1, 200, model.arch.vocab_size)
    blocks = tuple(range(1, 200 // BLOCK_TOKENS + 2))
    held = {1: Held(start, list(start.tokens), list(blocks))}
    kv = KvPool(model.kv_layout(BLOCK_TOKENS), model.arch.num_layers, len(blocks) + 1, model.device)
    batch = build([Slice(1, 0, 0, 200)], held, BLOCK_TOKENS, model.device)
    return model.logits(model.forward(batch, kv)).cpu()
