"""What is said where a GPU is asked for and cannot be had."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from octavo.engine import gpu
from octavo.errors import ConfigError
from tests.engine.tiny import engine

WITHOUT = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")


def machine(
    monkeypatch: pytest.MonkeyPatch, *, driver: bool, build: str | None, triton: bool, count: int
) -> None:
    monkeypatch.setattr(gpu, "_has_driver", lambda: driver)
    monkeypatch.setattr(torch.version, "cuda", build)
    monkeypatch.setattr(gpu.util, "find_spec", lambda _: object() if triton else None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


def test_everything_that_is_missing_is_named_with_its_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, driver=False, build=None, triton=False, count=0)
    found = gpu.lacks()
    assert [one.what.split()[0] for one in found] == ["no", "torch", "triton"]
    assert "nvidia-smi" in found[0].mend
    with pytest.raises(
        ConfigError, match=r"device='cuda'.*built without CUDA.*triton.*octavo\[cuda\].*device='cpu'"
    ):
        gpu.check_device("cuda")


def test_a_hidden_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, driver=True, build="12.8", triton=True, count=0)
    with pytest.raises(ConfigError, match=r"no GPU is visible to this process.*CUDA_VISIBLE_DEVICES"):
        gpu.check_device("cuda:0")


@pytest.mark.parametrize(
    ("count", "there"), [(1, "1 CUDA device, cuda:0$"), (4, "4 CUDA devices, cuda:0 to cuda:3$")]
)
def test_a_number_too_high(count: int, there: str, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, driver=True, build="12.8", triton=True, count=count)
    assert gpu.lacks() == []
    gpu.check_device("cuda")
    gpu.check_device(f"cuda:{count - 1}")
    with pytest.raises(ConfigError, match=f"device='cuda:{count}': this machine has {there}"):
        gpu.check_device(f"cuda:{count}")


@WITHOUT
def test_an_engine_is_refused_before_anything_is_loaded(tiny: Path) -> None:
    with pytest.raises(ConfigError, match=r"device='cuda:1': no CUDA device can be used"):
        engine(tiny, device="cuda:1")
