"""The GPU bench without a GPU: what it says then, and a walk through all of it on the processor."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benches import gpu
from benches.device import checks
from benches.device.subjects import Floor, Requests, kv_blocks
from benches.harness import GateFailed
from benches.record import Accelerator, Hardware, read, write
from octavo.arch import Arch
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
                 "decode 3 at 40 w4a16", "start to ready fp8"):  # fmt: skip
        assert line in said
    assert "record:" not in said


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
        checks.run_suites(only_collect=False)


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
