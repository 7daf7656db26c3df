"""Where a thread orders work: streams, launches and recordings go to the device that is current in their thread."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def on(device: torch.device) -> AbstractContextManager[object]:
    """Within, `device` is current in this thread; a processor always is."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
