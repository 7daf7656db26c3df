"""Files that are broken, hostile or something else, and the error that names each."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import octavo.models.checkpoint as checkpoint_module
from octavo.errors import LoadError
from octavo.models.checkpoint import Checkpoint, read_header
from octavo.models.loader import load
from tests.models.folders import tensors, write_config, write_index, write_model, write_raw, write_shards


def refusal(folder: Path) -> str:
    with pytest.raises(LoadError) as caught:
        load(folder)
    return str(caught.value)


def test_headers_agree_with_the_library(tmp_path: Path) -> None:
    held = {
        "a": torch.arange(6, dtype=torch.float32).view(2, 3),
        "b": torch.ones(3, dtype=torch.bfloat16),
        "empty": torch.ones(0, 4),
        "scalar": torch.tensor(2.5),
        "c": torch.full((5, 1), 0.5, dtype=torch.float16),
    }
    save_file(held, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with Checkpoint(tmp_path) as checkpoint:
        assert checkpoint.entries.keys() == held.keys()
        for name, value in held.items():
            assert checkpoint.entries[name].shape == tuple(value.shape)
            target = torch.full_like(value, -1)
            checkpoint.fill(name, target)
            assert torch.equal(target, value), name


def test_tensors_off_their_natural_border(tmp_path: Path) -> None:
    """The format does not promise alignment: here a float32 begins at an odd byte."""
    value = torch.tensor([1.5, -2.0])
    one = {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}
    header = {"one": one, "two": {"dtype": "F32", "shape": [2], "data_offsets": [1, 9]}}
    text = str(header).replace("'", '"').encode()
    padded = text + b" " * (-len(text) % 8)
    write_raw(tmp_path / "model.safetensors", padded, b"\0" + value.numpy().tobytes())
    with Checkpoint(tmp_path) as checkpoint:
        assert checkpoint.entries["two"].begin % 4 == 1
        target = torch.empty(2)
        checkpoint.fill("two", target)
        assert torch.equal(target, value)


@pytest.mark.parametrize("cut", [1, 1000])
def test_a_truncated_file(cut: int, tmp_path: Path) -> None:
    write_model(tmp_path)
    file = tmp_path / "model.safetensors"
    size = file.stat().st_size
    file.write_bytes(file.read_bytes()[:-cut])
    message = refusal(tmp_path)
    assert message.startswith(f"{file} is truncated: model.")
    assert f"and the file has {size - cut} bytes" in message


def test_a_file_cut_within_its_header(tmp_path: Path) -> None:
    write_model(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    assert f"{file} is truncated: its header should end at byte" in refusal(tmp_path)


def test_a_file_with_bytes_to_spare(tmp_path: Path) -> None:
    write_model(tmp_path)
    file = tmp_path / "model.safetensors"
    size = file.stat().st_size
    file.write_bytes(file.read_bytes() + b"xyz")
    assert f"{file} has {size + 3} bytes; its header accounts for {size}" in refusal(tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"x", b"PK\x03\x04" + bytes(100), pickle.dumps({"a": list(range(50))})]
)
def test_what_is_not_safetensors(content: bytes, tmp_path: Path) -> None:
    write_config(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(content)
    assert "model.safetensors is not a safetensors file: no header begins at byte 8" in refusal(tmp_path)


def test_a_pointer_instead_of_the_file(tmp_path: Path) -> None:
    write_config(tmp_path)
    text = (
        "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1\n"
    )
    (tmp_path / "model.safetensors").write_text(text)
    assert "is a Git LFS pointer, not weights" in refusal(tmp_path)


def test_a_header_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_config(tmp_path)
    write_raw(tmp_path / "model.safetensors", {}, header_bytes=2**63)
    assert f"says its header has {2**63} bytes; the limit is 100000000" in refusal(tmp_path)
    monkeypatch.setattr(checkpoint_module, "MAX_HEADER_BYTES", 10)
    write_model(tmp_path)
    assert "the limit is 10" in refusal(tmp_path)


F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("header", "body", "message"),
    [
        (b"{]", 0, "has a header that is not JSON"),
        (b'{"a\xff": 1}', 0, "has a header that is not JSON"),
        ({"a": 5}, 0, "describes a as 5; expected dtype, shape and data_offsets"),
        ({"a": {"dtype": "F32", "shape": [2]}}, 8, "describes a as {'dtype': 'F32', 'shape': [2]}; expected"),
        ({"a": {**F32, "shape": [-2]}}, 8, "describes a as"),
        ({"a": {**F32, "shape": [2.0]}}, 8, "describes a as"),
        ({"a": {**F32, "shape": [True, 2]}}, 8, "describes a as"),
        ({"a": {**F32, "dtype": 32}}, 8, "describes a as"),
        ({"a": {**F32, "data_offsets": [0, 8, 9]}}, 8, "describes a as"),
        ({"a": {**F32, "data_offsets": [0, 4]}}, 4, "gives a 4 bytes; F32 [2] needs 8"),
        ({"a": {**F32, "data_offsets": [8, 0]}}, 8, "describes a as"),
        ({"a": F32, "b": {"dtype": "Q4", "shape": [1], "data_offsets": [8, 4]}}, 8, "describes b as"),
        ({"a": F32, "b": {**F32, "data_offsets": [4, 12]}}, 12, "b begins at byte"),
        ({"a": F32, "b": F32}, 8, "overlaps what comes before it"),
        ({"a": {**F32, "data_offsets": [8, 16]}}, 16, "leaves bytes unused before it"),
        ({"a": {**F32, "data_offsets": [2**70, 2**70 + 8]}}, 8, "leaves bytes unused before it"),
    ],
)
def test_headers_that_do_not_describe_the_file(header: Any, body: int, message: str, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    write_raw(file, header, bytes(body))
    with pytest.raises(LoadError) as caught:
        read_header(file)
    assert message in str(caught.value)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "model.pt"])
def test_pickles_are_never_read(name: str, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "ran",))

    write_config(tmp_path)
    (tmp_path / name).write_bytes(pickle.dumps(Bomb()))
    message = refusal(tmp_path)
    assert f"holds its weights only as pickle ({name})" in message
    assert "Pickles are never read" in message
    assert "writes safetensors" in message
    assert not (tmp_path / "ran").exists()


def test_pickles_beside_safetensors_do_not_matter(tmp_path: Path) -> None:
    write_model(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"not even a pickle")
    assert load(tmp_path).arch.num_layers == 2


def test_a_folder_without_weights(tmp_path: Path) -> None:
    write_config(tmp_path)
    assert "holds no weights; expected model.safetensors or model.safetensors.index.json" in refusal(tmp_path)


def test_several_files_and_no_index(tmp_path: Path) -> None:
    write_shards(tmp_path, tensors(write_config(tmp_path)))
    (tmp_path / "model.safetensors.index.json").unlink()
    assert "holds 3 safetensors files and neither model.safetensors nor" in refusal(tmp_path)


@pytest.fixture
def sharded(tmp_path: Path) -> tuple[Path, dict[str, str]]:
    return tmp_path, write_shards(tmp_path, tensors(write_config(tmp_path)))


def test_a_missing_shard(sharded: tuple[Path, dict[str, str]]) -> None:
    folder, weight_map = sharded
    shard = weight_map["model.norm.weight"]
    (folder / shard).unlink()
    message = refusal(folder)
    assert "model.safetensors.index.json puts " in message
    assert f"into {shard}, and there is no such file in {folder}" in message


def test_a_tensor_that_is_not_in_its_shard(sharded: tuple[Path, dict[str, str]]) -> None:
    folder, weight_map = sharded
    shards = sorted(set(weight_map.values()))
    other = shards[(shards.index(weight_map["model.norm.weight"]) + 1) % len(shards)]
    write_index(folder, {**weight_map, "model.norm.weight": other})
    assert f"puts model.norm.weight into {other}, which does not hold it" in refusal(folder)


def test_a_tensor_in_two_shards(sharded: tuple[Path, dict[str, str]]) -> None:
    folder, weight_map = sharded
    first = weight_map["model.norm.weight"]
    other = next(shard for shard in weight_map.values() if shard != first)
    held = tensors(write_config(folder))
    twice = {name: held[name] for name in held if weight_map[name] == other or name == "model.norm.weight"}
    save_file(twice, folder / other)
    message = refusal(folder)
    assert "model.norm.weight lies in two files, " in message
    assert first in message
    assert other in message


def test_a_tensor_that_the_index_does_not_list(sharded: tuple[Path, dict[str, str]]) -> None:
    folder, weight_map = sharded
    shard = weight_map.pop("model.norm.weight")
    write_index(folder, weight_map)
    message = refusal(folder)
    assert f"{shard} holds model.norm.weight, which " in message
    assert message.endswith("model.safetensors.index.json does not list")


@pytest.mark.parametrize(
    "name",
    [
        "../outside.safetensors",
        "/etc/passwd",
        "sub/x.safetensors",
        "..",
        "a\\b.safetensors",
        "model.bin",
        "",
        7,
        None,
    ],
)
def test_an_index_may_not_lead_elsewhere(name: Any, sharded: tuple[Path, dict[str, str]]) -> None:
    folder, weight_map = sharded
    save_file({"x": torch.ones(1)}, folder.parent / "outside.safetensors")
    write_index(folder, {**weight_map, "model.norm.weight": name})
    message = refusal(folder)
    assert "weight_map.model.norm.weight is " in message
    assert "expected the name of a .safetensors file in the same folder" in message


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {}}'])
def test_a_broken_index(content: str, sharded: tuple[Path, dict[str, str]]) -> None:
    folder, _ = sharded
    (folder / "model.safetensors.index.json").write_text(content)
    assert "model.safetensors.index.json" in refusal(folder)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1, exclude_max=True), byte=st.integers(0, 255))
def test_a_flipped_byte_in_the_header_is_found_or_harmless(place: float, byte: int, tmp_path: Path) -> None:
    """Whatever it does, it ends in a LoadError or in a model; never in another error."""
    write_model(tmp_path)
    file = tmp_path / "model.safetensors"
    content = bytearray(file.read_bytes())
    header_bytes = 8 + int.from_bytes(content[:8], "little")
    content[int(place * header_bytes)] = byte
    file.write_bytes(content)
    try:
        model = load(tmp_path)
    except LoadError:
        return
    assert model.arch.num_layers == 2
