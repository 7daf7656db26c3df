"""Weights in safetensors files, memory-mapped and checked before any of them is believed.

The format: eight bytes with the length of a header, the header as JSON (name -> dtype, shape, first and last
byte), then the tensors. Nothing in it can run. Source: the safetensors format description.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from octavo.arch.fields import read_json
from octavo.errors import LoadError

MAX_HEADER_BYTES = 100_000_000
WHOLE_DIGEST_BYTES = 256 << 20
SAMPLE_BYTES = 64 << 10
NUM_SAMPLES = 16
PIECE_BYTES = 16 << 20

_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
_ITEM_BYTES = {
    **{"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2},
    **{"I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1},
}
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


@dataclass(frozen=True, slots=True)
class Entry:
    """Where one tensor lies: bytes `begin` to `end` of `file`; `dtype` as the format spells it."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class Checkpoint:
    """The tensors of a model folder. A context manager: the mappings are closed at the end.

    entries  by tensor name
    """

    def __init__(self, folder: Path) -> None:
        """Read and check all headers. Raises LoadError naming the file and what is wrong with it."""
        self.folder = folder
        self.entries = _entries(folder)
        self._mappings: dict[Path, mmap.mmap] = {}
        num_bytes = sum(entry.end - entry.begin for entry in self.entries.values())
        self._digests_whole = num_bytes < WHOLE_DIGEST_BYTES

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *_: object) -> None:
        for mapping in self._mappings.values():
            mapping.close()
        self._mappings.clear()

    def fill(self, name: str, target: Tensor) -> bytes:
        """Copy a tensor into `target`, cast to its dtype, and return the digest of what the file holds.

        Raises LoadError when a value is infinite or undefined, be it in the file or after the cast.
        """
        entry = self.entries[name]
        if entry.end > entry.begin:
            target.copy_(_view(self._mapping(entry.file), entry))
            if not _is_finite(target):
                raise self.not_finite(name, target.dtype)
        return self.digest(name)

    def pieces(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Iterator[Tensor]:
        """A matrix as groups of rows; see `octavo.models.loader.Source`."""
        entry = self.entries[name]
        whole = _view(self._mapping(entry.file), entry)
        for rows in torch.split(whole, _rows_of_a_piece(shape, whole.element_size())):
            yield rows.to(dtype)

    def digest(self, name: str) -> bytes:
        """Of what the file holds of a tensor; its pages are handed back to the system.

        Of a checkpoint below 256 MiB every byte is digested; of a larger one 16 evenly spaced samples of
        64 KiB per tensor, first and last among them.
        """
        entry = self.entries[name]
        mapping = self._mapping(entry.file)
        digest = _digest(mapping, entry, whole=self._digests_whole)
        first_page = entry.begin - entry.begin % mmap.PAGESIZE
        mapping.madvise(mmap.MADV_DONTNEED, first_page, entry.end - first_page)
        return digest

    def not_finite(self, name: str, dtype: torch.dtype) -> LoadError:
        """Says whether the file or the cast to `dtype` made a tensor's values infinite or undefined."""
        entry = self.entries[name]
        is_stored = not _is_finite(_view(self._mapping(entry.file), entry))
        whose = f"stored as {entry.dtype}" if is_stored else f"cast to {dtype}"
        return LoadError(f"{entry.file}: {name} holds infinite or undefined values when {whose}")

    def holds_same(self, name: str, other: str) -> bool:
        """Whether two tensors are equal byte for byte."""
        mine, its = self.entries[name], self.entries[other]
        if (mine.dtype, mine.shape) != (its.dtype, its.shape):
            return False
        left = memoryview(self._mapping(mine.file))[mine.begin : mine.end]
        right = memoryview(self._mapping(its.file))[its.begin : its.end]
        with left, right:
            return left == right

    def _mapping(self, file: Path) -> mmap.mmap:
        if file not in self._mappings:
            with file.open("rb") as opened:  # a private mapping: torch asks for memory it could write
                self._mappings[file] = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY)
        return self._mappings[file]


def _view(mapping: mmap.mmap, entry: Entry) -> Tensor:
    """The tensor in place; a copy where the file does not align it."""
    dtype = _DTYPES[entry.dtype]
    num_items = math.prod(entry.shape)
    if entry.begin % dtype.itemsize:
        return torch.frombuffer(bytearray(mapping[entry.begin : entry.end]), dtype=dtype).view(entry.shape)
    return torch.frombuffer(mapping, dtype=dtype, count=num_items, offset=entry.begin).view(entry.shape)


def _rows_of_a_piece(shape: tuple[int, ...], item_bytes: int) -> int:
    """A multiple of 16 that makes pieces of about PIECE_BYTES."""
    return max(PIECE_BYTES // max(16 * shape[1] * item_bytes, 1), 1) * 16


def _is_finite(tensor: Tensor) -> bool:
    """Whether all values are, looked at piece by piece to save memory."""
    return all(bool(torch.isfinite(piece).all()) for piece in torch.split(tensor.reshape(-1), 1 << 22))


def _digest(mapping: mmap.mmap, entry: Entry, *, whole: bool) -> bytes:
    num_bytes = entry.end - entry.begin
    digest = hashlib.sha256(f"{entry.dtype} {entry.shape}".encode())
    with memoryview(mapping) as view:
        if whole or num_bytes <= NUM_SAMPLES * SAMPLE_BYTES:
            digest.update(view[entry.begin : entry.end])
        else:
            for i in range(NUM_SAMPLES):
                begin = entry.begin + (num_bytes - SAMPLE_BYTES) * i // (NUM_SAMPLES - 1)
                digest.update(view[begin : begin + SAMPLE_BYTES])
    return digest.digest()


def _entries(folder: Path) -> dict[str, Entry]:
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return read_header(single)
    if index.is_file():
        return _indexed(folder, index)
    files = sorted(folder.glob("*.safetensors"))
    if len(files) == 1:
        return read_header(files[0])
    if files:
        raise LoadError(
            f"{folder} holds {len(files)} safetensors files and neither model.safetensors nor {index.name}; "
            f"expected one file, or the index that says which tensor lies where"
        )
    pickles = sorted(file.name for file in folder.iterdir() if file.suffix in _PICKLES)
    if pickles:
        raise LoadError(
            f"{folder} holds its weights only as pickle ({', '.join(pickles[:3])}). Pickles are never read, "
            f"because reading one runs whatever code it contains. Where you trust it, convert it once with "
            f"transformers: AutoModelForCausalLM.from_pretrained({str(folder)!r}, dtype='auto')"
            f".save_pretrained(NEW_FOLDER) writes safetensors"
        )
    raise LoadError(f"{folder} holds no weights; expected model.safetensors or {index.name}")


def _indexed(folder: Path, index: Path) -> dict[str, Entry]:
    """Tensors over several files. Each must lie in the file that the index names, and in no other."""
    fields = read_json(index)
    listed = fields.inner("weight_map")
    if listed is None:
        raise fields.fail("weight_map", "an object from tensor names to file names")
    shards: dict[str, dict[str, Entry]] = {}
    for name, shard in listed.values.items():
        if not _is_plain_name(shard):
            raise listed.fail(name, "the name of a .safetensors file in the same folder")
        if shard not in shards:
            if not (folder / shard).is_file():
                raise LoadError(f"{index} puts {name} into {shard}, and there is no such file in {folder}")
            shards[shard] = read_header(folder / shard)
        if name not in shards[shard]:
            raise LoadError(f"{index} puts {name} into {shard}, which does not hold it")
    entries: dict[str, Entry] = {}
    for name, entry in ((name, entry) for held in shards.values() for name, entry in held.items()):
        if name in entries:
            raise LoadError(f"{name} lies in two files, {entries[name].file} and {entry.file}; expected one")
        entries[name] = entry
    unlisted = next((name for name in entries if name not in listed.values), None)
    if unlisted is not None:
        raise LoadError(f"{entries[unlisted].file} holds {unlisted}, which {index} does not list")
    return entries


def _is_plain_name(shard: object) -> bool:
    """Whether an index may name it: a file beside it, not a path that leads elsewhere."""
    return isinstance(shard, str) and shard.endswith(".safetensors") and not {"/", "\\"} & set(shard)


def read_header(file: Path) -> dict[str, Entry]:
    """The tensors of one safetensors file, by name. Raises LoadError unless header and file agree."""
    size = file.stat().st_size
    with file.open("rb") as opened:
        start = opened.read(16)
        if start.startswith(b"version https:"):
            raise LoadError(f"{file} is a Git LFS pointer, not weights; fetch them with `git lfs pull`")
        if size < 10 or start[8:9] != b"{":
            raise LoadError(f"{file} is not a safetensors file: no header begins at byte 8")
        header_bytes = int.from_bytes(start[:8], "little")
        if header_bytes > MAX_HEADER_BYTES:
            raise LoadError(
                f"{file} says its header has {header_bytes} bytes; the limit is {MAX_HEADER_BYTES}"
            )
        if 8 + header_bytes > size:
            raise LoadError(
                f"{file} is truncated: its header should end at byte {8 + header_bytes}, "
                f"and the file has {size} bytes"
            )
        opened.seek(8)
        text = opened.read(header_bytes)
    try:
        header = json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise LoadError(f"{file} has a header that is not JSON: {error}") from None
    header.pop("__metadata__", None)
    base = 8 + header_bytes
    entries = {name: _entry(file, name, fields, base) for name, fields in header.items()}
    _check_extents(file, entries, base, size)
    return entries


def _entry(file: Path, name: str, fields: Any, base: int) -> Entry:
    try:
        dtype, shape = fields["dtype"], tuple(fields["shape"])
        begin, end = fields["data_offsets"]
        numbers = (*shape, begin, end)
        sound = all(type(number) is int and number >= 0 for number in numbers)
        sound = sound and begin <= end and isinstance(dtype, str)
    except (KeyError, TypeError, ValueError):
        sound = False
    if not sound:
        raise LoadError(f"{file} describes {name} as {fields}; expected dtype, shape and data_offsets")
    expected = math.prod(shape) * _ITEM_BYTES.get(dtype, 0)
    if dtype in _ITEM_BYTES and end - begin != expected:
        raise LoadError(f"{file} gives {name} {end - begin} bytes; {dtype} {list(shape)} needs {expected}")
    return Entry(file, dtype, shape, base + begin, base + end)


def _check_extents(file: Path, entries: Mapping[str, Entry], base: int, size: int) -> None:
    """The tensors must fill the file from the header to its last byte, without overlap."""
    position = base
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != position:
            verb = (
                "overlaps what comes before it" if entry.begin < position else "leaves bytes unused before it"
            )
            raise LoadError(
                f"{file}: {name} begins at byte {entry.begin} and {verb}; expected byte {position}"
            )
        if entry.end > size:
            raise LoadError(
                f"{file} is truncated: {name} should end at byte {entry.end}, and the file has {size} bytes"
            )
        position = entry.end
    if position != size:
        raise LoadError(f"{file} has {size} bytes; its header accounts for {position}")


def check_dtypes(entries: Mapping[str, Entry], names: Iterable[str]) -> None:
    """Raise LoadError for a tensor stored in a number format that is not supported."""
    for name in names:
        if entries[name].dtype not in _DTYPES:
            raise LoadError(
                f"{entries[name].file}: {name} is stored as {entries[name].dtype}; "
                f"supported are {', '.join(_DTYPES)}"
            )


def stored_dtype(entry: Entry) -> torch.dtype:
    """The torch dtype of a checked entry."""
    return _DTYPES[entry.dtype]
