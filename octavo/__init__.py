"""Octavo: serve, compress, plan, simulate and explain large language models.

The public names are loaded on demand: importing `octavo` imports no tensor library.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["LLM", "AsyncLLM", "SamplingParams", "__version__"]

if TYPE_CHECKING:
    from octavo.core.sequence import SamplingParams
    from octavo.engine.llm import LLM
    from octavo.engine.service import AsyncLLM

_HOME = {
    "LLM": "octavo.engine.llm",
    "AsyncLLM": "octavo.engine.service",
    "SamplingParams": "octavo.core.sequence",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'octavo' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOME[name]), name)
