"""Checkpoints of int8 and int4 weights as vLLM reads them: the compressed-tensors layout, rounded to nearest.

int8: W8A8, weights int8 with one scale per row, activations int8 per token, the head included.
int4: W4A16 in groups of 128 along the inputs, eight values packed to an int32; the head as in int8.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from benches.peers.folders import TOKENIZER_FILES

GROUP_SIZE = 128
PER_WORD = 8
Tensors = dict[str, Tensor]

_HEAD = "re:.*lm_head"
_W8A8: dict[str, Any] = {
    "format": "int-quantized",
    "weights": {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel", "dynamic": False},
    "input_activations": {
        "num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True,
    },
}  # fmt: skip
_W4: dict[str, Any] = {
    "format": "pack-quantized",
    "weights": {
        "num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": GROUP_SIZE,
        "dynamic": False,
    },
    "input_activations": None,
}  # fmt: skip


def write_checkpoint(source: Path, folder: Path, precision: str) -> None:
    """Quantize the folder `source` (one bf16 safetensors file) into `folder`; precision "int8" or "int4".

    A tied head becomes one of its own, so that it can be quantized while the embedding stays bf16.
    """
    layer = int8 if precision == "int8" else int4
    tensors: Tensors = {}
    with safe_open(source / "model.safetensors", "pt") as file:
        for name in file.keys():  # noqa: SIM118, it is no mapping
            weight = file.get_tensor(name)
            if weight.dim() == 2 and ".layers." in name:
                tensors.update(layer(name, weight))
            elif name != "lm_head.weight":
                tensors[name] = weight
        names = set(file.keys())
        head = "lm_head.weight" if "lm_head.weight" in names else "model.embed_tokens.weight"
        tensors.update(int8("lm_head.weight", file.get_tensor(head)))
    folder.mkdir(parents=True, exist_ok=True)
    for name in (*TOKENIZER_FILES, "generation_config.json"):
        shutil.copyfile(source / name, folder / name)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((source / "config.json").read_text())
    config |= {"tie_word_embeddings": False, "quantization_config": quantization_config(precision)}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def int8(name: str, weight: Tensor) -> Tensors:
    """Rows of [out, in] divided by their own scale [out, 1], bf16."""
    values = weight.float()
    scale = values.abs().amax(1, keepdim=True) / 127
    quantized = torch.round(values / scale).clamp(-127, 127).to(torch.int8)
    return {name: quantized, f"{name}_scale": scale.to(torch.bfloat16)}


def int4(name: str, weight: Tensor) -> Tensors:
    """Groups of inputs divided by their own scale [out, in / 128]; values stored plus 8, the first lowest."""
    num_out, num_in = weight.shape
    values = weight.float().view(num_out, num_in // GROUP_SIZE, GROUP_SIZE)
    scale = values.abs().amax(2, keepdim=True) / 7
    nibbles = (torch.round(values / scale).clamp(-8, 7) + 8).to(torch.int32)
    nibbles = nibbles.view(num_out, num_in // PER_WORD, PER_WORD)
    packed = torch.zeros(nibbles.shape[:2], dtype=torch.int32)
    for place in range(PER_WORD):
        packed |= nibbles[:, :, place] << (4 * place)
    base = name.removesuffix("weight")
    return {
        f"{base}weight_packed": packed,
        f"{base}weight_scale": scale.view(num_out, -1).to(torch.bfloat16),
        f"{base}weight_shape": torch.tensor([num_out, num_in], dtype=torch.int64),
    }


def quantization_config(precision: str) -> dict[str, Any]:
    """What config.json says about it."""
    if precision == "int8":
        form, groups = "int-quantized", {"group_0": {"targets": ["Linear", _HEAD], **_W8A8}}
    else:
        form = "mixed-precision"
        groups = {"group_0": {"targets": [_HEAD], **_W8A8}, "group_1": {"targets": ["Linear"], **_W4}}
    return {
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
        "format": form,
        "ignore": [],
        "config_groups": groups,
    }
