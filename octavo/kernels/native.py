"""The compiled kernels: whether they are there, and which instruction set's run on this processor."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from octavo.errors import ConfigError

_module: ModuleType | None
_absent = ""
try:
    _module = import_module("octavo._cpu")
except ImportError as error:
    _module, _absent = None, str(error)

QUANTIZATION = ("int8", "int4", "w4a16")
"""Weights that they read. int8 and int4 round activations to int8, too."""
WITHOUT = ("w8a16", "w4a16", "fp8")
"""Weights that are read where ops run one by one; all leave activations as they are."""

EMULATED = "emulated"
"""The kernels on tile registers with these emulated: slow, for tests. Only ever by name."""

DTYPES = ("float32", "bfloat16")
"""What they compute in."""


def module() -> ModuleType:
    """The compiled module. Raises ConfigError where it was not built."""
    if _module is None:
        raise ConfigError(why_absent())
    return _module


def why_absent() -> str:
    return f"the compiled module octavo._cpu is missing ({_absent}); `pip install .` builds it"


def instruction_sets() -> tuple[str, ...]:
    """Those with kernels that run here, best first; empty where the module was not built."""
    return () if _module is None else tuple(_module.instruction_sets())


def choose(asked: str, device: str, dtype: str) -> tuple[str | None, str]:
    """The instruction set to use, or None for the torch reference, and why.

    asked   "auto", "reference", or a name that `instruction_sets` gives
    device  torch device type
    dtype   of the activations

    Raises ConfigError when a set is asked for by name and cannot serve.
    """
    if asked == "reference":
        return None, "as configured"
    reason = None
    if device != "cpu":
        reason = f"compiled kernels run on cpu, not on {device}"
    elif dtype not in DTYPES:
        reason = f"compiled kernels take {' and '.join(DTYPES)}, not {dtype}"
    elif _module is None:
        reason = why_absent()
    found = instruction_sets()
    if asked == "auto":
        return (None, reason) if reason else (found[0], f"the best of {', '.join(found)} on this processor")
    if reason is None and asked not in (*found, EMULATED):
        reason = f"this processor runs {', '.join(found)}"
    if reason:
        raise ConfigError(f"kernels={asked!r}: {reason}; use 'auto' or 'reference'")
    return asked, "as configured"


def check_batch_invariant(batch_invariant: bool, isa: str) -> None:
    """Raises ConfigError for False: these kernels sum in one order whatever the batch, and know no faster one."""
    if not batch_invariant:
        raise ConfigError(
            f"batch_invariant=False would change nothing here: the compiled kernels ({isa}) sum in one order whatever"
            f" the batch, and the library's products are no faster; leave it out"
        )


def check_quantization(quantization: str | None, isa: str | None, because: str) -> None:
    """Raises ConfigError unless the kernels that `choose` gave, None for ops one by one, read such weights.

    because  why there are no compiled kernels, where there are none
    """
    if quantization is None or quantization in (WITHOUT if isa is None else QUANTIZATION):
        return
    if isa is None:
        raise ConfigError(
            f"quantization={quantization!r} needs compiled kernels: {because}; {', '.join(WITHOUT)} run without, and"
            f" round weights only"
        )
    raise ConfigError(
        f"quantization={quantization!r}: compiled kernels read {', '.join(QUANTIZATION)}; use one of them, or"
        f" device='cuda', or kernels='reference'"
    )
