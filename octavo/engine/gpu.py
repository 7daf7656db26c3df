"""What a machine lacks to run models on an NVIDIA GPU, and how to mend it."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from importlib import util

import torch

from octavo.errors import ConfigError

DRIVER = "libcuda.so.1"


@dataclass(frozen=True, slots=True)
class Lack:
    """Something that is missing, and what to do about it."""

    what: str
    mend: str


def lacks() -> list[Lack]:
    """Everything that is missing, what the rest stands on first; empty where models can run on a GPU."""
    found = []
    if not _has_driver():
        found.append(
            Lack(
                f"no NVIDIA driver ({DRIVER} cannot be loaded)",
                "install the driver of your GPU; `nvidia-smi` lists the GPU when it is there",
            )
        )
    if torch.version.cuda is None:
        found.append(
            Lack(
                f"torch {torch.__version__} is built without CUDA",
                "install a build of PyTorch with CUDA: `make install TORCH=torch` on a machine with a GPU",
            )
        )
    if util.find_spec("triton") is None:
        found.append(Lack("triton is not installed", "pip install 'octavo[cuda]'"))
    if not found and not torch.cuda.is_available():
        found.append(
            Lack(
                "driver and libraries are there, and no GPU is visible to this process",
                "see that `nvidia-smi` lists one and CUDA_VISIBLE_DEVICES does not hide it",
            )
        )
    return found


def check_device(asked: str) -> None:
    """Raises ConfigError unless `asked`, "cuda" or "cuda:N", is there."""
    if not torch.cuda.is_available():
        missing = lacks()
        what, mend = "; ".join(one.what for one in missing), "; ".join(one.mend for one in missing)
        raise ConfigError(
            f"device={asked!r}: no CUDA device can be used: {what}. {mend}; or use device='cpu'"
        )
    _, _, number = asked.partition(":")
    count = torch.cuda.device_count()
    if number and int(number) >= count:
        raise ConfigError(
            f"device={asked!r}: this machine has {count} CUDA device{'s' * (count > 1)}, cuda:0"
            f"{f' to cuda:{count - 1}' * (count > 1)}"
        )


def _has_driver() -> bool:
    try:
        ctypes.CDLL(DRIVER)
    except OSError:
        return False
    return True
