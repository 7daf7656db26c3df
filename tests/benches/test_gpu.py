"""The GPU bench without a GPU: what it says then, and a walk through all of it on the processor."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benches import gpu
from benches.device import checks, products
from benches.device.subjects import Floor, Requests, kv_blocks
from benches.device.trial import Allowance
from benches.harness import GateFailed
from benches.record import Accelerator, Hardware, read, write
from octavo.arch import Arch
from octavo.kernels import linear
from octavo.kernels.choose import fits_all
from octavo.models import ops
from tests.benches.made import LIMITS, record

WITHOUT = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
QUICK = (("row tiles", "tests/kernels/test_tiles.py"),)


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Shorter sequences than a device gets, and one thread: others run beside."""
    torch.set_num_threads(1)
    if request.node.get_closest_marker("slow") is None:
        monkeypatch.setattr(checks, "LENGTHS", (20, 1, 5, 33))
        monkeypatch.setattr(checks, "NUM_DECODES", 4)


@WITHOUT
def test_without_a_gpu_it_says_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main([]) == 2
    said = capsys.readouterr().err
    assert "missing: " in said
    assert "CUDA" in said


def test_a_walk_through_everything(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(checks, "SUITES", QUICK)
    assert gpu.main(["--dry-run", "--no-peer"]) == 0
    said = capsys.readouterr().out
    for line in ("equal bits one by one, launched ahead, recorded", "from float32", "start to ready", "decode 3 at 40",
                 "prefill 70", "host 3", "requests 4", "floor_s", "launch_share", "weights w8a16: equal bits",
                 "with weights fp8 logits", "keys and values fp8: equal bits",
                 "decode 3 at 40 w4a16", "start to ready fp8", "products of 5 rows"):  # fmt: skip
        assert line in said
    assert "record:" not in said


def test_products_that_depend_on_the_batch_are_measured_beside_ours(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The library's are made to fit the processor, and nobody asks for equal bits of them."""
    impls = tuple(
        replace(impl, refuses=fits_all) if impl.name == "library" else impl for impl in linear.IMPLS
    )
    monkeypatch.setattr(ops.linear, "IMPLS", impls)
    monkeypatch.setattr(products, "IMPLS", impls)
    trial = replace(gpu.DRY, quantizations=(), variant_batches=(1, 3), product_rows=(5,))
    monkeypatch.setattr(gpu, "DRY", trial)
    assert gpu.main(["--dry-run", "--no-peer", "--no-checks"]) == 0
    said = capsys.readouterr().out
    for line in ("start to ready bits by batch", "decode 3 at 40 bits by batch", "prefill 70 bits by batch"):
        assert line in said
    found = checks.check_rounding(gpu.bundled.path(), torch.device("cpu"), batch_invariant=False)
    assert found.startswith("with bits that may depend on the batch logits are ")


def test_wrong_products_are_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    (reference,) = (impl for impl in linear.IMPLS if impl.name == "reference")
    monkeypatch.setattr(products, "IMPLS", (replace(reference, run=lambda x, w: 1.01 * reference.run(x, w)),))
    made = products.Products(
        Arch.from_file(gpu.bundled.path() / "config.json"), torch.device("cpu"), flop_per_s=1.0,
        copy_bytes_per_s=1.0, capture=lambda work: work,
    )  # fmt: skip
    with pytest.raises(GateFailed, match=r"reference: \[3, \d+\] by \[\d+, \d+\] is off"):
        made.gate(3)


def test_checks_alone(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(gpu, "check", lambda *_, **__: ["all is well"])
    assert gpu.main(["--dry-run", "--only-checks"]) == 0
    assert capsys.readouterr().out == "all is well\n"


def test_what_does_not_fit_into_the_time_is_left_out_and_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--dry-run", "--no-peer", "--no-checks", "--within-s", "1"]) == 0
    captured = capsys.readouterr()
    assert "left out, " in captured.err
    assert "start to ready w8a16" in captured.err
    assert "How near" not in captured.out


def test_time_is_shared_among_the_questions_that_are_left() -> None:
    now_s = 100.0
    allowance = Allowance(120.0, 4, lambda: now_s)
    assert allowance.share_s() == 30.0
    now_s += 60.0
    assert allowance.share_s() == 20.0
    now_s += 10.0
    assert allowance.share_s() == 25.0
    now_s += 36.0
    assert allowance.share_s() is None
    assert allowance.left_s == 14.0


def test_every_question_is_counted(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--dry-run", "--no-peer", "--no-checks", "--quantizations", "fp8"]) == 0
    asked = capsys.readouterr().out.count("How near")
    assert asked == replace(gpu.DRY, quantizations=("fp8",)).num_questions()


@pytest.mark.slow
def test_a_walk_with_every_suite_and_the_peer(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--dry-run"]) == 0
    assert "transformers: " in capsys.readouterr().out


def test_wrong_results_are_not_timed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def wrong(*_: Any, **__: Any) -> str:
        raise GateFailed("other bits")

    monkeypatch.setattr(checks, "SUITES", ())
    monkeypatch.setattr(checks, "check_model", wrong)
    assert gpu.main(["--dry-run"]) == 1
    captured = capsys.readouterr()
    assert "nothing was timed: other bits" in captured.err
    assert "How near" not in captured.out


def test_a_suite_that_fails_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "test_broken.py"
    broken.write_text("def test_it() -> None:\n    assert 1 == 2\n")
    monkeypatch.setattr(checks, "SUITES", (("arithmetic", str(broken)),))
    with pytest.raises(GateFailed, match=r"arithmetic: .*failed"):
        checks.run_suites(only_collect=False, within_s=60.0)


def test_a_suite_that_does_not_end_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    endless = tmp_path / "test_endless.py"
    endless.write_text("import time\n\ndef test_it() -> None:\n    time.sleep(600)\n")
    monkeypatch.setattr(checks, "SUITES", (("patience", str(endless)),))
    with pytest.raises(GateFailed, match=r"patience: .*had not ended after 0\.5 s"):
        checks.run_suites(only_collect=False, within_s=0.5)


def test_a_model_whose_company_shows_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sequence alone is given the answers of another seed."""
    decoded = checks._decoded

    def leaks(*args: Any, only: int | None = None, **options: Any) -> Any:
        found = decoded(*args, only=only, **options)
        return found if only is None else {only: found[only][::-1]}

    monkeypatch.setattr(checks, "_decoded", leaks)
    with pytest.raises(GateFailed, match="alone than in company"):
        checks.check_model(gpu.bundled.path(), torch.device("cpu"), lambda work: work)


def test_floors_by_hand() -> None:
    arch = Arch.from_file(gpu.SHAPES / "llama-3.1-8b.json")
    assert arch.num_parameters() == 8_030_261_248
    floor = Floor(arch=arch, dtype="bfloat16", copy_bytes_per_s=4e12, bf16_flop_per_s=8e14)
    weights = 2 * (8_030_261_248 - 128256 * 4096)
    per_token = 32 * 2 * 8 * 128 * 2
    assert floor.decode_s(256, 1000) == pytest.approx((weights + 256 * 1000 * per_token) / 4e12)
    assert floor.prefill_s(8192) == pytest.approx(0.16, rel=0.15), "2 x 7 billion x 8192 and the attention"


def test_the_floor_of_rounded_weights_by_hand() -> None:
    """Layers at nine sixteenths of a byte for each weight, the head at one with a float32 scale per row."""
    arch = Arch.from_file(gpu.SHAPES / "llama-3.1-8b.json")
    floor = Floor(
        arch=arch, dtype="bfloat16", copy_bytes_per_s=1.0, bf16_flop_per_s=8e14, quantization="w4a16"
    )
    layers = 32 * (4096 * (4096 + 1024 + 1024 + 4096) + 3 * 4096 * 14336)
    norms = (32 * 2 + 1) * 4096 * 2
    assert replace(floor, kv_dtype="fp8").decode_s(1, 64) - floor.decode_s(0, 0) == 64 * 32 * 2 * 8 * 129
    assert floor.decode_s(0, 0) == layers * 36 / 64 + 128256 * (4096 + 4) + norms


def test_sizes() -> None:
    assert kv_blocks([(2, 33), (1, 40)], 16) == 7
    requests = Requests(20, 5, 9, 3)
    assert requests.prompts(50, 1) == requests.prompts(50, 1) != requests.prompts(50, 2)
    assert [len(prompt) for prompt in requests.prompts(50, 1)] == [
        len(one) for one in requests.prompts(50, 2)
    ]


def test_records_stand_under_the_device_they_were_measured_on(tmp_path: Path) -> None:
    device = Accelerator(
        name="NVIDIA H200", memory_bytes=141 << 30, copy_bytes_per_s=4.3e12, bf16_flop_per_s=7.9e14
    )
    made = replace(record({"octavo": {"rate_per_s": [1.0]}}), hardware=Hardware.of(LIMITS, 0.0, device))
    path = write(made, tmp_path)
    assert path.parent.name == "nvidia-h200"
    assert read(path) == made
