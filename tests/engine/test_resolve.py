""" "auto" becomes numbers, each with a reason, and what cannot be is refused with the figures."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from octavo.arch import Arch
from octavo.config import EngineConfig
from octavo.engine.machine import Machine
from octavo.engine.resolve import Resolved, resolve
from octavo.errors import ConfigError
from octavo.kernels import native
from octavo.planner.device import device_workspace_bytes
from octavo.units import GIB, MIB, format_bytes
from tests.engine.tiny import CONFIG

needs_compiled = pytest.mark.skipif(not native.instruction_sets(), reason="the compiled module is not built")

MACHINE = Machine(num_cores=6, total_bytes=16 * GIB, available_bytes=8 * GIB)
LARGE = CONFIG | {
    "vocab_size": 32000, "hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 16, "head_dim": 64,
    "num_attention_heads": 16, "num_key_value_heads": 8, "max_position_embeddings": 4096, "torch_dtype": "bfloat16",
}  # fmt: skip


def settle(
    config: dict[str, Any] = LARGE, *, on: str = "cpu", free: int = 8 * GIB, **settings: Any
) -> Resolved:
    return resolve(EngineConfig.of(**settings), Arch.from_config(config), MACHINE, device=on, free_bytes=free)


def by_field(resolved: Resolved) -> dict[str, tuple[str, str]]:
    assert len({one.field for one in resolved.decisions}) == len(resolved.decisions)
    return {one.field: (one.value, one.because) for one in resolved.decisions}


def test_everything_left_open_is_decided_with_a_reason() -> None:
    resolved = settle()
    made = by_field(resolved)
    assert made["device"] == ("cpu", "no CUDA device is present")
    assert made["dtype"] == ("bfloat16", "the checkpoint's own")
    assert made["kv_cache_dtype"] == ("bfloat16", "as the model computes")
    assert made["num_threads"][0] == "6"
    assert made["max_model_len"][0] == "4096"
    assert made["max_num_batched_tokens"][0] == "512"
    assert made["block_size"][0] == "16"
    assert made["memory_limit"][0] == format_bytes(int(0.9 * 8 * GIB))
    assert int(made["num_kv_blocks"][0]) == resolved.limits.num_blocks == resolved.memory.num_kv_blocks
    assert all(because for _, because in made.values())
    assert (resolved.device, resolved.dtype, resolved.num_threads) == ("cpu", "bfloat16", 6)


def test_what_was_set_is_taken_and_not_called_a_decision() -> None:
    resolved = settle(
        device="cpu", dtype="float32", num_threads=3, max_model_len=1000, max_num_seqs=5, max_num_batched_tokens=77,
        max_chunk_tokens=33, max_num_mixed_tokens=20,
        block_size=4, memory_limit=2 * GIB, num_kv_blocks=900, enable_prefix_caching=False,
        kernels="portable",
    )  # fmt: skip
    limits = resolved.limits
    assert (resolved.dtype, resolved.num_threads, resolved.max_model_len) == ("float32", 3, 1000)
    assert (limits.max_num_seqs, limits.max_num_batched_tokens, limits.max_chunk_tokens) == (5, 77, 33)
    assert (limits.block_tokens, limits.num_blocks, limits.max_model_len) == (4, 900, 1000)
    assert limits.enable_prefix_caching is False
    assert resolved.memory.limit_bytes == 2 * GIB
    assert by_field(resolved) == {
        "device": ("cpu", "as configured"),
        "kv_cache_dtype": ("float32", "as the model computes"),
    }


def test_a_gpu_gets_larger_steps() -> None:
    made = by_field(settle(on="cuda"))
    assert made["device"] == ("cuda", "a CUDA device is present")
    assert made["max_num_batched_tokens"][0] == "4096"


def test_a_checkpoint_without_a_dtype_is_served_in_float32() -> None:
    config = {name: value for name, value in LARGE.items() if name != "torch_dtype"}
    assert by_field(settle(config))["dtype"] == ("float32", "the checkpoint names none")


def test_many_seats_raise_the_step_and_a_step_set_too_small_is_refused() -> None:
    assert settle(max_num_seqs=700).limits.max_num_batched_tokens == 700
    with pytest.raises(ConfigError, match=r"max_num_batched_tokens=64 is below max_num_seqs=65"):
        settle(max_num_seqs=65, max_num_batched_tokens=64)


def test_the_pool_takes_what_the_limit_leaves_to_the_last_block() -> None:
    resolved = settle(memory_limit=1 * GIB)
    memory = resolved.memory
    assert 0 <= memory.left_bytes < memory.kv_block_bytes
    assert (
        memory.weight_bytes
        + memory.workspace_bytes
        + memory.recorder_bytes
        + memory.kv_bytes
        + memory.left_bytes
        == 1 * GIB
    )
    assert "beside weights, workspace and recorder" in by_field(resolved)["num_kv_blocks"][1]


def test_the_pool_is_no_larger_than_all_seats_can_fill() -> None:
    resolved = settle(max_num_seqs=2, max_model_len=100, block_size=16)
    assert resolved.limits.num_blocks == 2 * 7 + 1
    assert "needs no more" in by_field(resolved)["num_kv_blocks"][1]


def test_a_pool_that_does_not_fit_is_refused_with_the_figures() -> None:
    fits = settle(memory_limit=1 * GIB).memory
    with pytest.raises(ConfigError) as caught:
        settle(memory_limit=1 * GIB, num_kv_blocks=fits.num_kv_blocks + 1)
    text = str(caught.value)
    assert f"{fits.num_kv_blocks + 1} KV blocks" in text
    assert f"leave room for {fits.num_kv_blocks}" in text
    for figure in (fits.weight_bytes, fits.workspace_bytes, fits.kv_block_bytes, 1 * GIB):
        assert format_bytes(figure) in text
    assert settle(memory_limit=1 * GIB, num_kv_blocks=fits.num_kv_blocks).memory == replace(fits)


def test_too_little_memory_names_what_would_be_enough() -> None:
    with pytest.raises(ConfigError) as caught:
        settle(memory_limit=300 * MIB)
    text = str(caught.value)
    assert "raise memory_limit from 300 MiB to at least" in text
    memory = settle(memory_limit=4 * GIB, num_kv_blocks=4096 // 16 + 1).memory
    enough = memory.weight_bytes + memory.workspace_bytes + memory.recorder_bytes + memory.kv_bytes
    assert format_bytes(enough) in text
    assert settle(memory_limit=enough).limits.num_blocks == 4096 // 16 + 1
    with pytest.raises(ConfigError, match="lower max_model_len"):
        settle(memory_limit=enough - 1)


def test_a_sliding_window_needs_its_window_only() -> None:
    sliding = LARGE | {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": 64}
    limits = settle(sliding, num_kv_blocks=8).limits
    assert limits.window_tokens == 64
    assert limits.num_blocks == 8
    with pytest.raises(ConfigError, match="needs 7 KV blocks"):
        settle(sliding, num_kv_blocks=6)
    with pytest.raises(ConfigError, match="needs 257 KV blocks"):
        settle(LARGE, num_kv_blocks=8)


def test_a_window_longer_than_the_model_is_refused() -> None:
    with pytest.raises(ConfigError, match="max_model_len=4097 exceeds the 4096 positions"):
        settle(max_model_len=4097)


def test_keys_and_values_in_another_dtype_are_refused() -> None:
    with pytest.raises(
        ConfigError, match="kv_cache_dtype='float16' differs from the model's dtype 'bfloat16'"
    ):
        settle(kv_cache_dtype="float16")
    assert settle(kv_cache_dtype="bf16").dtype == "bfloat16"


# Compiled kernels and quantized weights


def test_kernels_left_open_are_a_decision() -> None:
    found = native.instruction_sets()
    resolved = settle()
    value, because = by_field(resolved)["kernels"]
    if found:
        assert resolved.isa == value == found[0]
        assert because == f"the best of {', '.join(found)} on this processor"
    else:
        assert (resolved.isa, value) == (None, "reference")
        assert "octavo._cpu is missing" in because


@pytest.mark.parametrize(
    ("settings", "because"),
    [
        ({"on": "cuda:1"}, "compiled kernels run on cpu, not on cuda"),
        ({"dtype": "float16"}, "compiled kernels take float32 and bfloat16, not float16"),
    ],
    ids=str,
)
def test_where_compiled_kernels_cannot_serve_the_reference_does(
    settings: dict[str, Any], because: str
) -> None:
    resolved = settle(**settings)
    assert resolved.isa is None
    assert by_field(resolved)["kernels"] == ("reference", because)


def test_a_missing_build_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_module", None)
    monkeypatch.setattr(native, "_absent", "No module named 'octavo._cpu'")
    resolved = settle()
    assert resolved.isa is None
    value, because = by_field(resolved)["kernels"]
    assert value == "reference"
    assert "octavo._cpu is missing (No module named 'octavo._cpu')" in because
    assert "pip install" in because
    with pytest.raises(ConfigError, match="needs compiled kernels"):
        settle(quantization="int8")
    with pytest.raises(ConfigError, match=r"kernels='avx2': the compiled module octavo\._cpu is missing"):
        settle(kernels="avx2")


def test_the_reference_is_taken_when_it_is_asked_for() -> None:
    resolved = settle(kernels="reference")
    assert resolved.isa is None
    assert "kernels" not in by_field(resolved)
    with pytest.raises(ConfigError, match="quantization='int4' needs compiled kernels"):
        settle(kernels="reference", quantization="int4")


def test_a_set_of_instructions_that_cannot_serve_is_refused() -> None:
    with pytest.raises(ConfigError, match="kernels='portable': compiled kernels run on cpu, not on cuda"):
        settle(kernels="portable", on="cuda")
    known = ("amx", "avx512_bf16", "avx512", "avx2")
    absent = next((one for one in known if one not in native.instruction_sets()), None)
    if absent is not None:
        with pytest.raises(ConfigError, match=f"kernels='{absent}': "):
            settle(kernels=absent)


@needs_compiled
@pytest.mark.parametrize(
    ("quantization", "layers"),
    [
        ("int8", "one scale per output; activations rounded to int8"),
        ("int4", "groups of 64 with scale and minimum; activations rounded to int8"),
        ("w4a16", "groups of 64 with scale and minimum; activations in bfloat16"),
    ],
)
def test_quantized_weights_are_a_decision_and_take_less_memory(quantization: str, layers: str) -> None:
    plain, rounded = settle(), settle(quantization=quantization)
    value, because = by_field(rounded)["quantized weights"]
    assert value == f"layers {quantization}, head int8"
    assert layers in because
    assert rounded.quantization == quantization
    assert plain.quantization is None
    assert rounded.memory.weight_bytes < 0.6 * plain.memory.weight_bytes
    assert rounded.memory.kv_block_bytes == plain.memory.kv_block_bytes


@pytest.mark.parametrize(
    ("quantization", "layers"),
    [
        ("w8a16", "one scale per output; activations in bfloat16"),
        ("w4a16", "groups of 64 with scale and minimum; activations in bfloat16"),
        ("fp8", "one scale per output, e4m3; activations in bfloat16"),
    ],
)
def test_on_a_gpu_weights_alone_are_rounded(
    quantization: str, layers: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("octavo.kernels.triton.util.find_spec", lambda _: object())
    plain = settle(on="cuda", free=64 * GIB)
    rounded = settle(on="cuda", free=64 * GIB, quantization=quantization)
    value, because = by_field(rounded)["quantized weights"]
    assert value == f"layers {quantization}, head w8a16"
    assert layers in because
    assert by_field(rounded)["graphs"][0] == "decode steps"
    assert rounded.memory.weight_bytes < 0.6 * plain.memory.weight_bytes
    assert rounded.memory.workspace_bytes == plain.memory.workspace_bytes


def test_keys_and_values_in_fp8_are_for_a_gpu_with_its_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte for each number, and one for each row of a head, where bfloat16 takes two."""
    with pytest.raises(
        ConfigError, match=r"kv_cache_dtype='fp8': on a processor .* use 'auto', or device='cuda'"
    ):
        settle(kv_cache_dtype="fp8")
    monkeypatch.setattr("octavo.kernels.triton.util.find_spec", lambda _: None)
    with pytest.raises(
        ConfigError, match="kv_cache_dtype='fp8' needs kernels of a GPU: triton: triton is not inst"
    ):
        settle(on="cuda", free=64 * GIB, kv_cache_dtype="fp8")
    monkeypatch.setattr("octavo.kernels.triton.util.find_spec", lambda _: object())
    plain = settle(on="cuda", free=64 * GIB)
    resolved = settle(on="cuda", free=64 * GIB, kv_cache_dtype="fp8")
    arch = Arch.from_config(LARGE)
    assert (plain.kv_dtype, resolved.kv_dtype) == ("bfloat16", "fp8")
    assert by_field(resolved)["keys and values"][0] == "e4m3"
    assert by_field(resolved)["graphs"][0] == "decode steps"
    block = arch.num_layers * 2 * 16 * arch.num_kv_heads * (arch.head_dim + 1)
    assert (
        resolved.memory.kv_block_bytes
        == block
        == plain.memory.kv_block_bytes * (arch.head_dim + 1) // (2 * arch.head_dim)
    )


def test_weights_that_the_kernels_do_not_read_are_refused() -> None:
    for quantization in ("int8", "int4"):
        with pytest.raises(
            ConfigError,
            match=f"'{quantization}' needs compiled kernels: .* not on cuda; w8a16, w4a16, fp8 run without",
        ):
            settle(on="cuda", free=64 * GIB, quantization=quantization)
    if native.instruction_sets():
        for quantization in ("w8a16", "fp8"):
            with pytest.raises(
                ConfigError, match=f"'{quantization}': compiled kernels read int8, int4, w4a16; use"
            ):
                settle(quantization=quantization)


def test_bits_may_depend_on_the_batch_where_a_kernel_is_faster_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("octavo.kernels.triton.util.find_spec", lambda _: object())
    assert "batch_invariant" not in by_field(settle(on="cuda", free=64 * GIB))
    made = by_field(settle(on="cuda", free=64 * GIB, batch_invariant=False))
    value, because = made["batch_invariant"]
    assert value == "false"
    assert "depend on what runs beside it: linear (library)" in because
    assert made["graphs"][0] == "decode steps"


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        pytest.param({}, r"the compiled kernels \(\w+\) sum in one order", marks=needs_compiled),
        ({"kernels": "reference"}, r"linear runs on reference \(library: runs on cuda, not on cpu, triton: "),
        ({"dtype": "float16"}, r"linear runs on reference \(library: runs on cuda"),
        ({"on": "cuda", "dtype": "float32"}, "library: takes bfloat16 and float16, not float32"),
        ({"on": "cuda", "quantization": "w4a16"}, "linear int4 runs on triton; linear int8 runs on triton"),
    ],
    ids=str,
)
def test_it_is_refused_where_it_would_change_nothing(
    settings: dict[str, Any], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("octavo.kernels.triton.util.find_spec", lambda _: object())
    with pytest.raises(
        ConfigError, match=f"batch_invariant=False would change nothing here: .*{why}.*leave it out"
    ):
        settle(free=64 * GIB, batch_invariant=False, **settings)


def test_more_sequences_than_attention_on_a_gpu_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("octavo.kernels.triton.util.find_spec", lambda _: object())
    assert settle(on="cuda", free=640 * GIB, max_num_seqs=4096).limits.max_num_seqs == 4096
    with pytest.raises(
        ConfigError, match="max_num_seqs=4097: attention on a GPU takes at most 4096 sequences"
    ):
        settle(on="cuda", free=640 * GIB, max_num_seqs=4097)
    assert settle(max_num_seqs=4097, free=64 * GIB).limits.max_num_seqs == 4097


@pytest.mark.parametrize("has_triton", [False, True])
def test_a_gpu_has_its_own_work_space_and_says_whether_steps_are_recorded(
    has_triton: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("octavo.kernels.triton.util.find_spec", lambda _: object() if has_triton else None)
    resolved = settle(on="cuda", free=64 * GIB)
    value, because = by_field(resolved)["graphs"]
    assert (value, "one launch" in because) == (("decode steps", True) if has_triton else ("none", False))
    assert has_triton or "paged_attention, linear" in because
    planned = device_workspace_bytes(
        Arch.from_config(LARGE),
        2,
        max_num_batched_tokens=resolved.limits.max_num_batched_tokens,
        max_num_seqs=resolved.limits.max_num_seqs,
        max_model_len=4096,
    )
    assert resolved.memory.workspace_bytes == planned
    assert resolved.isa is None
    assert "graphs" not in by_field(settle())
