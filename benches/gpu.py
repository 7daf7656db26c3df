"""How near does the engine come to what this GPU can do? Checks first, then measures; one command, ten minutes.

Of the time that --within-s gives, checks take what they need and questions share the rest: repeats are saved first,
then whole questions are left out, and it says which. Records are written one by one.

Every figure has its floor beside it: the bytes that a decode step must read over the rate at which the device copies,
the operations of a prompt over the rate of its matrix units. Without a GPU it says what is missing and exits with 2;
--dry-run walks through everything on the processor with a tiny model, and its figures mean nothing.
"""

from __future__ import annotations

import argparse
import gc
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from benches import harness
from benches.device import checks, limits, subjects
from benches.device.peer import Peer
from benches.device.products import Products
from benches.device.subjects import BLOCK_TOKENS, Floor
from benches.device.trial import AS_IT_COMES, DRY, LEAST_S, REAL, Allowance, Trial, Way
from benches.harness import Bench, GateFailed, Settings, Subject
from benches.peers.folders import write_folder
from benches.record import Accelerator, slug
from octavo import LLM, bundled
from octavo.arch import Arch
from octavo.engine.gpu import lacks
from octavo.engine.measure import MachineLimits, measure_machine
from octavo.errors import OctavoError
from octavo.exec.graphs import cuda_capture
from octavo.units import MIB, format_bytes

SHAPES = Path(__file__).parent / "shapes"
WITHIN_S = 540.0


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
    parser.add_argument("--only-checks", action="store_true", help="check and measure nothing")
    parser.add_argument(
        "--within-s",
        type=float,
        default=WITHIN_S,
        help="for all of it, checks included (default %(default)g)",
    )
    parser.add_argument("--no-peer", action="store_true", help="leave transformers out")
    harness.arguments(parser)
    args = parser.parse_args(words)
    began_s = time.perf_counter()
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
    found = ["kernels were not checked in this run"]
    try:
        if not args.no_checks or args.only_checks:
            found = check(
                torch.device(trial.device), trial.quantizations, is_dry=args.dry_run, within_s=args.within_s
            )
        print("\n".join(found))
        if args.only_checks:
            return 0
        left_s = args.within_s - (time.perf_counter() - began_s)
        return run(trial, settings, "; ".join(found), left_s, has_peer=not args.no_peer)
    except GateFailed as error:
        print(f"WRONG RESULTS, nothing was timed: {error}", file=sys.stderr)
        return 1
    except OctavoError as error:
        print(f"{error} [{error.code}]", file=sys.stderr)
        return 2


def run(trial: Trial, settings: Settings, gate: str, within_s: float, *, has_peer: bool) -> int:
    """Measure the device, then each model. Returns the exit code: 1 where something is wrong.

    gate  what has been checked, for the records
    """
    device = torch.device(trial.device)
    is_dry = device.type == "cpu"
    allowance = Allowance(within_s, trial.num_questions())
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
            elif allowance.left_s < LEAST_S:
                print(f"left out, {allowance.left_s:.0f} s are left: all about {model}", file=sys.stderr)
                continue
            else:
                write_folder(SHAPES / f"{model}.json", folder, device=trial.device)
            measured = Measured(trial, settings, machine, model, folder, gate, accelerator, allowance)
            failed |= measured.ask(has_peer=has_peer)
            if model == trial.rounded_model:
                failed |= measured.ask_products()
                if trial.variant_batches:
                    failed |= measured.ask_way(
                        trial.variant_batches, Way(batch_invariant=False), has_prompt=True
                    )
                for quantization in trial.quantizations:
                    failed |= measured.ask_way(trial.rounded_batches, Way(quantization=quantization))
                if trial.fp8_kv_batches:
                    failed |= measured.ask_way(trial.fp8_kv_batches, Way(kv_dtype="fp8"))
    return failed


def check(device: torch.device, quantizations: Sequence[str], *, is_dry: bool, within_s: float) -> list[str]:
    """Suites, then the bundled model on the device's own kernels, its weights as they are and rounded. Raises
    GateFailed, also where the suites take longer than `within_s`."""
    print("checks:", file=sys.stderr)
    found = checks.run_suites(only_collect=is_dry, within_s=within_s)
    folder = bundled.path()
    for quantization in (None, *quantizations):
        found.append(
            checks.check_model(folder, device, (lambda work: work) if is_dry else None, quantization)
        )
        found.append(checks.check_rounding(folder, device, quantization))
    found.append(checks.check_model(folder, device, (lambda work: work) if is_dry else None, has_fp8_kv=True))
    if not is_dry:  # where bits may depend on the batch, no two runs need be equal
        found.append(checks.check_rounding(folder, device, batch_invariant=False))
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
        allowance: Allowance,
    ) -> None:
        self.trial, self.settings, self.machine = trial, settings, machine
        self.model, self.folder, self._gate = model, folder, gate
        self.accelerator, self._allowance = accelerator, allowance
        self._peers: list[Peer] = []

    def ask(self, *, has_peer: bool) -> int:
        """Load the model, which answers the first question, and ask the others of it."""
        return self._loaded(AS_IT_COMES, lambda llm: self._benches(llm, has_peer))

    def ask_way(self, batches: Sequence[int], way: Way, *, has_prompt: bool = False) -> int:
        """Load the model another way, and ask how fast it decodes, and how fast it takes a prompt in."""

        def benches(llm: LLM) -> list[Bench]:
            made = self._decodes(llm, batches, way)
            return [*made, self._prompt(llm, way)] if has_prompt else made

        return self._loaded(way, benches)

    def ask_products(self) -> int:
        """How near our products and the library's come to the device's limits, without a model around them."""
        device = torch.device(self.trial.device)
        failed = self._asked_of_products(device)
        _give_back(device)
        return failed

    def _asked_of_products(self, device: torch.device) -> int:
        products = Products(
            Arch.from_file(self.folder / "config.json"),
            device,
            flop_per_s=self.accelerator.bf16_flop_per_s,
            copy_bytes_per_s=self.accelerator.copy_bytes_per_s,
            capture=cuda_capture() if device.type == "cuda" else (lambda work: work),
        )
        failed = 0
        for rows in self.trial.product_rows:
            bench = self._bench(
                f"products of {rows} rows", "floor_share", "of the floor", "higher", products.subjects(rows),
                ["one layer's and the head's, the head's of 512 rows at most"],
            )  # fmt: skip
            failed |= self._asked(replace(bench, gate=partial(products.gate, rows)))
        return failed

    def _loaded(self, way: Way, benches: Callable[[LLM], Sequence[Bench]]) -> int:
        failed = self._asked_of_one(way, benches)
        while self._peers:
            self._peers.pop().close()
        _give_back(torch.device(self.trial.device))
        return failed

    def _asked_of_one(self, way: Way, benches: Callable[[LLM], Sequence[Bench]]) -> int:
        failed = 0
        with ExitStack() as opened:
            llms: list[LLM] = []

            def start(repeat: int) -> Mapping[str, float]:
                del repeat  # there is one
                began_s = time.perf_counter()
                llms.append(opened.enter_context(self._llm(way)))
                return {
                    "ready_s": time.perf_counter() - began_s,
                    "weight_bytes": llms[0].built.model.weight_bytes,
                }

            once = replace(self.settings, repeats=1, warmup=0)
            what = f"start to ready{way.label}"
            failed |= self._asked(self._bench(what, "ready_s", "s", "lower", {"octavo": start}), once)
            for bench in benches(llms.pop()) if llms else ():
                failed |= self._asked(bench)
        return failed

    def _asked(self, bench: Bench, settings: Settings | None = None) -> int:
        """Ask one question in its part of the time that is left."""
        share_s = self._allowance.share_s()
        if share_s is None:
            print(f"left out, {self._allowance.left_s:.0f} s are left: {bench.question}", file=sys.stderr)
            return 0
        chosen = settings or self.settings
        budget_s = share_s if chosen.budget_s is None else min(share_s, chosen.budget_s)
        return harness.ask([bench], replace(chosen, budget_s=budget_s), self.machine)

    def _llm(self, way: Way) -> LLM:
        trial = self.trial
        requests = trial.requests
        longest = requests.longest + requests.num_output
        loads = [(batch, trial.context + trial.num_steps + BLOCK_TOKENS) for batch in trial.batches]
        loads += [(1, trial.prompt + BLOCK_TOKENS), (trial.max_num_seqs, longest + BLOCK_TOKENS)]
        return LLM(
            str(self.folder),
            device=trial.device,
            dtype="bfloat16",
            quantization=way.quantization,
            kv_cache_dtype=way.kv_dtype or "auto",
            batch_invariant=way.batch_invariant,
            kernels="auto"
            if way.quantization is None and way.batch_invariant
            else "reference",  # a processor's compiled ones round rows, too, and know no other order
            max_model_len=max(positions for _, positions in loads),
            max_num_seqs=trial.max_num_seqs,
            num_kv_blocks=subjects.kv_blocks(loads, BLOCK_TOKENS),
            block_size=BLOCK_TOKENS,
            num_threads=self.settings.threads,
        )

    def _floor(self, llm: LLM, way: Way = AS_IT_COMES) -> Floor:
        return Floor(
            arch=llm.built.plan.arch,
            dtype=llm.built.plan.resolved.dtype,
            copy_bytes_per_s=self.accelerator.copy_bytes_per_s,
            bf16_flop_per_s=self.accelerator.bf16_flop_per_s,
            quantization=way.quantization,
            kv_dtype=way.kv_dtype,
        )

    def _decodes(self, llm: LLM, batches: Sequence[int], way: Way = AS_IT_COMES) -> list[Bench]:
        trial, floor = self.trial, self._floor(llm, way)
        return [
            self._bench(
                f"decode {batch} at {trial.context}{way.label}",
                "floor_share", "of the floor", "higher",
                {"octavo": subjects.decode(llm, floor, batch, trial.context, trial.num_steps)},
            )
            for batch in batches
        ]  # fmt: skip

    def _prompt(self, llm: LLM, way: Way = AS_IT_COMES) -> Bench:
        return self._bench(
            f"prefill {self.trial.prompt}{way.label}", "floor_share", "of the floor", "higher",
            {"octavo": subjects.prefill(llm, self._floor(llm, way), self.trial.prompt)},
        )  # fmt: skip

    def _benches(self, llm: LLM, has_peer: bool) -> Sequence[Bench]:
        trial = self.trial
        made = [*self._decodes(llm, trial.batches), self._prompt(llm)]
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
                self._peers.append(Peer(self.folder, torch.device(trial.device)))
                answering["transformers"] = self._peers[-1].subject(trial.requests)
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


def _give_back(device: torch.device) -> None:
    """Memory of what has been closed, so that the next model's plan finds it free."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


if __name__ == "__main__":
    sys.exit(main())
