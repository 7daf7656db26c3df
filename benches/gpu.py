"""How near does the engine come to what this GPU can do? Checks first, then measures; one command, ten minutes.

Every figure has its floor beside it: the bytes that a decode step must read over the rate at which the device copies,
the operations of a prompt over the rate of its matrix units. Without a GPU it says what is missing and exits with 2;
--dry-run walks through everything on the processor with a tiny model, and its figures mean nothing.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from benches import harness
from benches.device import checks, limits, subjects
from benches.device.peer import Peer
from benches.device.subjects import BLOCK_TOKENS, Floor, Requests
from benches.harness import Bench, GateFailed, Settings, Subject
from benches.peers.folders import write_folder
from benches.record import Accelerator, slug
from octavo import LLM, bundled
from octavo.engine.gpu import lacks
from octavo.engine.measure import MachineLimits, measure_machine
from octavo.errors import OctavoError
from octavo.units import MIB, format_bytes

SHAPES = Path(__file__).parent / "shapes"


@dataclass(frozen=True, kw_only=True)
class Trial:
    """How large everything is."""

    device: str
    models: tuple[str, ...]
    batches: tuple[int, ...]
    context: int
    num_steps: int
    prompt: int
    requests: Requests
    host_seqs: int
    max_num_seqs: int
    copy_bytes: int
    side: int
    quantizations: tuple[str, ...] = ("w8a16", "w4a16", "fp8")
    rounded_model: str = "llama-3.1-8b"
    rounded_batches: tuple[int, ...] = (1, 32)
    fp8_kv_batches: tuple[int, ...] = (32, 256)


REAL = Trial(
    device="cuda",
    models=("qwen3-0.6b", "llama-3.1-8b"),
    batches=(1, 32, 256),
    context=1024,
    num_steps=64,
    prompt=8192,
    requests=Requests(512, 64, 512, 80),
    host_seqs=256,
    max_num_seqs=256,
    copy_bytes=limits.COPY_BYTES,
    side=limits.SIDE,
)
DRY = Trial(
    device="cpu",
    models=("dry",),
    batches=(1, 3),
    context=40,
    num_steps=3,
    prompt=70,
    requests=Requests(4, 5, 20, 6),
    host_seqs=3,
    max_num_seqs=4,
    copy_bytes=MIB,
    side=64,
    rounded_model="dry",
    rounded_batches=(1, 3),
    fp8_kv_batches=(),  # engines on a processor refuse them
)


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(prog="python -m benches.gpu", description=__doc__)
    parser.add_argument(
        "--dry-run", action="store_true", help="on the processor, with a tiny model; no records"
    )
    parser.add_argument("--models", help=f"comma separated (default {','.join(REAL.models)})")
    parser.add_argument(
        "--quantizations",
        help=f"comma separated, or none: of the weights of {REAL.rounded_model}"
        f" (default {','.join(REAL.quantizations)})",
    )
    parser.add_argument("--no-checks", action="store_true", help="measure only; records say so")
    parser.add_argument("--no-peer", action="store_true", help="leave transformers out")
    harness.arguments(parser)
    args = parser.parse_args(words)
    trial = DRY if args.dry_run else REAL
    if args.models:
        trial = replace(trial, models=tuple(args.models.split(",")))
    if args.quantizations:
        asked = () if args.quantizations == "none" else tuple(args.quantizations.split(","))
        trial = replace(trial, quantizations=asked)
    missing = [] if args.dry_run else lacks()
    for lack in missing:
        print(f"missing: {lack.what}\n  {lack.mend}", file=sys.stderr)
    if missing:
        return 2
    settings = harness.settings(args, "benches.gpu", words)
    if args.dry_run:
        settings = replace(settings, repeats=1, results=None, threads=1)
    try:
        return run(trial, settings, has_checks=not args.no_checks, has_peer=not args.no_peer)
    except OctavoError as error:
        print(f"{error} [{error.code}]", file=sys.stderr)
        return 2


def run(trial: Trial, settings: Settings, *, has_checks: bool, has_peer: bool) -> int:
    """Check, measure the device, then each model. Returns the exit code: 1 where something is wrong."""
    device = torch.device(trial.device)
    is_dry = device.type == "cpu"
    try:
        found = (
            check(device, trial.quantizations, is_dry=is_dry)
            if has_checks
            else ["kernels were not checked in this run"]
        )
    except GateFailed as error:
        print(f"WRONG RESULTS, nothing was timed: {error}", file=sys.stderr)
        return 1
    print("\n".join(found))
    accelerator = limits.measure(device, copy_bytes=trial.copy_bytes, side=trial.side)
    print(
        f"{accelerator.name}: copies {accelerator.copy_bytes_per_s / 1e12:.2f} TB/s,"
        f" multiplies {accelerator.bf16_flop_per_s / 1e12:.0f} TFLOP/s"
    )
    settings = replace(settings, accelerator=None if is_dry else accelerator)
    machine = measure_machine(
        settings.threads, array_bytes=MIB if is_dry else None, sides=(64,) if is_dry else (1024,)
    )
    failed = 0
    for model in trial.models:
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place) / model
            if model == "dry":
                folder = bundled.path()
            else:
                write_folder(SHAPES / f"{model}.json", folder, device=trial.device)
            measured = Measured(trial, settings, machine, model, folder, "; ".join(found), accelerator)
            failed |= measured.ask(has_peer=has_peer)
            if model == trial.rounded_model:
                for quantization in trial.quantizations:
                    failed |= measured.ask_rounded(trial.rounded_batches, quantization, None)
                if trial.fp8_kv_batches:
                    failed |= measured.ask_rounded(trial.fp8_kv_batches, None, "fp8")
    return failed


def check(device: torch.device, quantizations: Sequence[str], *, is_dry: bool) -> list[str]:
    """Suites, then the bundled model on the device's own kernels, its weights as they are and rounded. Raises
    GateFailed."""
    print("checks:", file=sys.stderr)
    found = checks.run_suites(only_collect=is_dry)
    folder = bundled.path()
    for quantization in (None, *quantizations):
        found.append(
            checks.check_model(folder, device, (lambda work: work) if is_dry else None, quantization)
        )
        found.append(checks.check_rounding(folder, device, quantization))
    found.append(checks.check_model(folder, device, (lambda work: work) if is_dry else None, has_fp8_kv=True))
    return found


class Measured:
    """One model's questions."""

    def __init__(
        self,
        trial: Trial,
        settings: Settings,
        machine: MachineLimits,
        model: str,
        folder: Path,
        gate: str,
        accelerator: Accelerator,
    ) -> None:
        self.trial, self.settings, self.machine = trial, settings, machine
        self.model, self.folder, self._gate = model, folder, gate
        self.accelerator = accelerator

    def ask(self, *, has_peer: bool) -> int:
        """Load the model, which answers the first question, and ask the others of it."""
        return self._loaded(None, None, lambda llm: self._benches(llm, has_peer))

    def ask_rounded(self, batches: Sequence[int], quantization: str | None, kv_dtype: str | None) -> int:
        """Load the model with rounded weights, or rounded keys and values, and ask how fast it decodes."""
        return self._loaded(
            quantization, kv_dtype, lambda llm: self._decodes(llm, batches, quantization, kv_dtype)
        )

    def _loaded(
        self, quantization: str | None, kv_dtype: str | None, benches: Callable[[LLM], Sequence[Bench]]
    ) -> int:
        with ExitStack() as opened:
            llms: list[LLM] = []

            def start(repeat: int) -> Mapping[str, float]:
                del repeat  # there is one
                began_s = time.perf_counter()
                llms.append(opened.enter_context(self._llm(quantization, kv_dtype)))
                return {
                    "ready_s": time.perf_counter() - began_s,
                    "weight_bytes": llms[0].built.model.weight_bytes,
                }

            once = replace(self.settings, repeats=1, warmup=0)
            failed = harness.ask(
                [
                    self._bench(
                        f"start to ready{_of(quantization, kv_dtype)}",
                        "ready_s",
                        "s",
                        "lower",
                        {"octavo": start},
                    )
                ],
                once,
                self.machine,
            )
            if failed or not llms:
                return 1
            return harness.ask(list(benches(llms[0])), self.settings, self.machine)

    def _llm(self, quantization: str | None, kv_dtype: str | None) -> LLM:
        trial = self.trial
        requests = trial.requests
        longest = requests.longest + requests.num_output
        loads = [(batch, trial.context + trial.num_steps + BLOCK_TOKENS) for batch in trial.batches]
        loads += [(1, trial.prompt + BLOCK_TOKENS), (trial.max_num_seqs, longest + BLOCK_TOKENS)]
        return LLM(
            str(self.folder),
            device=trial.device,
            dtype="bfloat16",
            quantization=quantization,
            kv_cache_dtype=kv_dtype or "auto",
            kernels="auto"
            if quantization is None
            else "reference",  # a processor's compiled ones round rows, too
            max_model_len=max(positions for _, positions in loads),
            max_num_seqs=trial.max_num_seqs,
            num_kv_blocks=subjects.kv_blocks(loads, BLOCK_TOKENS),
            block_size=BLOCK_TOKENS,
            num_threads=self.settings.threads,
        )

    def _floor(self, llm: LLM, quantization: str | None = None, kv_dtype: str | None = None) -> Floor:
        return Floor(
            arch=llm.built.plan.arch,
            dtype=llm.built.plan.resolved.dtype,
            copy_bytes_per_s=self.accelerator.copy_bytes_per_s,
            bf16_flop_per_s=self.accelerator.bf16_flop_per_s,
            quantization=quantization,
            kv_dtype=kv_dtype,
        )

    def _decodes(
        self,
        llm: LLM,
        batches: Sequence[int],
        quantization: str | None = None,
        kv_dtype: str | None = None,
    ) -> list[Bench]:
        trial, floor = self.trial, self._floor(llm, quantization, kv_dtype)
        return [
            self._bench(
                f"decode {batch} at {trial.context}{_of(quantization, kv_dtype)}",
                "floor_share", "of the floor", "higher",
                {"octavo": subjects.decode(llm, floor, batch, trial.context, trial.num_steps)},
            )
            for batch in batches
        ]  # fmt: skip

    def _benches(self, llm: LLM, has_peer: bool) -> Sequence[Bench]:
        trial, floor = self.trial, self._floor(llm)
        made = self._decodes(llm, trial.batches)
        made.append(
            self._bench(
                f"prefill {trial.prompt}", "floor_share", "of the floor", "higher",
                {"octavo": subjects.prefill(llm, floor, trial.prompt)},
            )
        )  # fmt: skip
        host = subjects.host_share(llm, trial.host_seqs, 16, 48 if trial.device == "cuda" else 4)
        made.append(
            self._bench(f"host {trial.host_seqs}", "host_share", "of a step", "lower", {"octavo": host})
        )
        answering: dict[str, Subject] = {"octavo": subjects.throughput(llm, trial.requests)}
        notes = []
        if has_peer:
            if trial.device == "cuda":
                free = format_bytes(torch.cuda.mem_get_info()[0])
                notes.append(f"transformers found {free} of device memory free beside octavo")
            try:
                answering["transformers"] = Peer(self.folder, torch.device(trial.device)).subject(
                    trial.requests
                )
            except ImportError as error:
                notes.append(f"transformers was not measured: {error}")
        made.append(
            self._bench(
                f"requests {trial.requests.number}",
                "output_tokens_per_s",
                "tok/s",
                "higher",
                answering,
                notes,
            )
        )
        return made

    def _bench(
        self,
        what: str,
        figure: str,
        unit: str,
        better: str,
        asked: Mapping[str, Subject],
        notes: Sequence[str] = (),
    ) -> Bench:
        trial = self.trial
        return Bench(
            question=f"How near does {self.model} come to this device's limits: {what}?",
            slug=slug(f"gpu {self.model} {what}"),
            figure=figure,
            unit=unit,
            better=better,
            shape={
                "model": self.model,
                "what": what,
                "context": trial.context,
                "steps": trial.num_steps,
                "requests": trial.requests.number,
                "prompt_tokens": f"{trial.requests.shortest} to {trial.requests.longest}",
                "output_tokens": trial.requests.num_output,
            },
            gate=lambda: self._gate,
            subjects=asked,
            seeds={"weights": 0, "prompts": "'WHAT REPEAT', repeats counted from 0", "lengths": 0},
            notes=["weights are random", *notes],
        )


def _of(quantization: str | None, kv_dtype: str | None) -> str:
    return (f" {quantization}" if quantization else "") + (f" kv {kv_dtype}" if kv_dtype else "")


if __name__ == "__main__":
    sys.exit(main())
