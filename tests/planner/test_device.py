"""The bound on a device's work space, against the sizes of the tensors that the code itself makes."""

from __future__ import annotations

import re
from pathlib import Path

import torch

import octavo.kernels.attention
from octavo.arch import Arch
from octavo.core.sequence import SamplingParams
from octavo.decode import batched
from octavo.decode.sampler import Job
from octavo.exec import graphs
from octavo.planner import device
from tests.engine.tiny import CONFIG

LLAMA_8B = CONFIG | {
    "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32, "num_key_value_heads": 8,
    "head_dim": 128, "vocab_size": 128256, "num_hidden_layers": 32, "max_position_embeddings": 131072,
}  # fmt: skip


def test_the_number_that_stands_twice_is_the_same() -> None:
    """Kernels stand alone, and the planner loads none of them."""
    source = (Path(octavo.kernels.attention.__file__).parent / "cuda.py").read_text(encoding="utf-8")
    found = re.search(r"^PART = (\d+)$", source, re.MULTILINE)
    assert found is not None
    assert int(found[1]) == device.ATTENTION_PART


def test_an_8b_model_on_a_large_device() -> None:
    """By hand: the parts of 256 sequences of 8192 positions, 32 heads of 128 values and two sums each."""
    arch = Arch.from_config(LLAMA_8B)
    sizes = {"max_num_batched_tokens": 4096, "max_num_seqs": 256, "max_model_len": 8192}
    parts = (256 * 8192 // 256 + 256) * 32 * 130 * 4
    total = device.device_workspace_bytes(arch, 2, **sizes)
    assert parts < total < 3 * 2**30
    longer = device.device_workspace_bytes(arch, 2, **(sizes | {"max_model_len": 131072}))
    assert longer - total >= 256 * (131072 - 8192) // 256 * 32 * 130 * 4


def test_graphs_arrays_are_within_what_is_planned() -> None:
    arch = Arch.from_config(CONFIG)
    sizes = graphs.Sizes.of(100, 4096, 1)
    planned = device.graph_bytes(arch, 4, max_num_seqs=100, max_model_len=4096)
    form = graphs.Form(sizes.most_seqs, sizes.most_seqs, sizes.width)
    arrays = form.nbytes + sizes.most_seqs * sizes.width * 4 + 100 * 8
    assert arrays + 100 * arch.vocab_size * 4 <= planned


def test_rows_that_are_drawn_from_together_keep_within_their_share() -> None:
    """The allocator is traced through a draw of more rows than one group takes."""
    size = 30_000
    logits = torch.randn(200, size, generator=torch.Generator().manual_seed(1))
    params = SamplingParams(temperature=0.9, top_p=0.9, min_p=0.01, logprobs=5, repetition_penalty=1.1)
    jobs = [Job(row=i, params=params, seed=i, choice=0, position=3, output_tokens=[1, 2]) for i in range(200)]
    assert batched.GROUP_BYTES // (batched.ROW_BYTES * size) < 200
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as traced:
        batched.draw(logits, jobs)
    events = [event for event in traced.profiler.kineto_results.events() if event.name() == "[memory]"]
    total = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        total += event.nbytes()
        most = max(most, total)
    assert 0 < most <= batched.GROUP_BYTES + 3 * logits.nbytes
