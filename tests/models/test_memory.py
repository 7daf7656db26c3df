"""Loading keeps one copy of the weights, and reading the file leaves nothing behind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from tests.models.folders import tensors, write_config

MEASURE = """
import resource, sys
from pathlib import Path
from octavo.models.loader import load
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
load(Path(sys.argv[1]))
before = peak()
model = load(Path(sys.argv[2]))
print(peak() - before, model.arch.weight_bytes("bfloat16"))
"""


def test_peak_memory_is_one_copy(tmp_path: Path) -> None:
    """90 MiB of weights in 18 layers. Beside the one copy, two layers may be in flight.

    A small model of the same shapes is loaded first, so that libraries and trials have had their share.
    """
    shape = {
        "hidden_size": 512,
        "intermediate_size": 1024,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
    }
    for name, num_layers in (("small", 1), ("large", 18)):
        folder = tmp_path / name
        folder.mkdir()
        config = write_config(folder, **shape, num_hidden_layers=num_layers)
        save_file(tensors(config, torch.bfloat16), folder / "model.safetensors")
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "small"), str(tmp_path / "large")]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    grown, weights = map(int, out.split())
    layer = weights // 18
    assert weights > 80 << 20
    assert grown < weights + 2 * layer
