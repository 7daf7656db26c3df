"""`Arch.num_parameters` equals what transformers builds, for every variant."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers

from octavo.arch import Arch
from octavo.models.registry import parts_of
from tests.parity.checkpoints import VARIANTS


@pytest.mark.parametrize("variant", VARIANTS)
def test_number_of_parameters(variant: str, checkpoint: Callable[[str], Path]) -> None:
    folder = checkpoint(variant)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.from_pretrained(folder))
    arch = Arch.from_file(folder)
    assert arch.num_parameters() == sum(parameter.numel() for parameter in model.parameters())
    names = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    assert {weight.name: weight.shape for weight in parts_of(arch).weights()} == names
