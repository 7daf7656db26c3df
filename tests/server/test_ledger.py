"""The ledger through crashes, full disks and rot: what was acknowledged is there once, nothing else is believed."""

from __future__ import annotations

import binascii
import errno
import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from octavo.server.ledger import Header, Ledger, LedgerError, Record

NUM_REQUESTS = 12
HEADER = Header("batch_1", hashlib.sha256(b"input").hexdigest())


def record(number: int, text: str = "x", is_ok: bool = True) -> Record:
    line = json.dumps({"custom_id": str(number), "text": text}).encode()
    return Record(number, is_ok, (3, 1, 2, 0), msgspec.Raw(line))


def open_ledger(path: Path, **more) -> Ledger:
    return Ledger(path, HEADER, NUM_REQUESTS, **more)


def good_lines(path: Path) -> list[tuple[int, str]]:
    """(number, text) of the lines whose checksum is right, by a reading of our own."""
    found = []
    for line in path.read_bytes().split(b"\n")[1:]:
        crc, _, payload = line.partition(b" ")
        try:
            is_good = int(crc, 16) == binascii.crc32(payload) and len(crc) == 8
        except ValueError:
            continue
        if is_good:
            number, _, _, result = json.loads(payload)
            found.append((number, result["text"]))
    return found


def test_records_come_back_in_both_orders(tmp_path):
    ledger = open_ledger(tmp_path / "l")
    ledger.append([record(4, "a"), record(2, "b")])
    ledger.append([record(3, "c", is_ok=False)])
    assert [one.number for one in ledger.records()] == [4, 2, 3]
    assert [(one.number, one.is_ok) for one in ledger.in_order()] == [(2, True), (3, False), (4, True)]
    ledger.append([record(0, "d")])  # reading has not moved where it writes
    ledger.close()
    again = open_ledger(tmp_path / "l")
    assert [json.loads(bytes(one.line))["text"] for one in again.records()] == ["a", "b", "c", "d"]
    assert again.num_damaged == 0
    again.close()


def test_a_second_record_of_a_request_is_passed_over(tmp_path):
    ledger = open_ledger(tmp_path / "l")
    ledger.append([record(1, "first"), record(1, "second")])
    ledger.append([record(1, "third")])
    assert good_lines(tmp_path / "l") == [(1, "first")]
    with pytest.raises(LedgerError, match="no request 12"):
        ledger.append([record(12)])
    ledger.close()


def test_another_input_or_another_writer_is_refused(tmp_path):
    ledger = open_ledger(tmp_path / "l")
    with pytest.raises(LedgerError, match="another process"):
        open_ledger(tmp_path / "l")
    ledger.close()
    with pytest.raises(LedgerError, match="another input"):
        Ledger(tmp_path / "l", Header("batch_1", "00"), NUM_REQUESTS)
    damaged = bytearray((tmp_path / "l").read_bytes())
    damaged[12] ^= 1
    (tmp_path / "l").write_bytes(damaged)
    with pytest.raises(LedgerError, match="damaged"):
        open_ledger(tmp_path / "l")


def test_every_cut_of_the_file_gives_back_its_whole_lines(tmp_path):
    """A torn write can end anywhere."""
    ledger = open_ledger(tmp_path / "l")
    ledger.append([record(number, f"text {number}") for number in range(4)])
    ledger.close()
    whole = (tmp_path / "l").read_bytes()
    for end in range(len(whole) + 1):
        (tmp_path / "cut").write_bytes(whole[:end])
        again = open_ledger(tmp_path / "cut")
        assert sorted(again.offsets) == list(range(max(0, whole[:end].count(b"\n") - 1)))
        again.append([record(9, "after")])
        again.close()
        assert good_lines(tmp_path / "cut")[-1] == (9, "after")


def test_every_flipped_bit_is_noticed(tmp_path):
    ledger = open_ledger(tmp_path / "l")
    start = ledger.size
    ledger.append([record(number, f"text {number}") for number in range(3)])
    ledger.close()
    whole = (tmp_path / "l").read_bytes()
    for place in range(start, len(whole)):
        for bit in (0, 3, 7):
            damaged = bytearray(whole)
            damaged[place] ^= 1 << bit
            (tmp_path / "d").write_bytes(damaged)
            again = open_ledger(tmp_path / "d")
            assert len(again.offsets) < 3
            assert again.num_damaged >= 1
            for one in again.records():
                assert json.loads(bytes(one.line))["text"] == f"text {one.number}"
            again.close()


def test_damage_after_opening_is_noticed_when_it_is_read(tmp_path):
    ledger = open_ledger(tmp_path / "l")
    ledger.append([record(0, "text")])
    with open(tmp_path / "l", "r+b") as file:
        file.seek(ledger.offsets[0] + 20)
        file.write(b"!")
    with pytest.raises(LedgerError, match="damaged"):
        list(ledger.in_order())
    ledger.close()


class Killed(BaseException):
    """The process ends here."""


class LedgerMachine(RuleBasedStateMachine):
    """Appends that end in a kill before, inside or after a write or a sync; full disks; rot while nothing runs.

    What a kill leaves of bytes that were not synced is drawn: any length, any bytes changed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.path = self.folder / "ledger"
        self.attempted: dict[int, set[str]] = {}
        self.acknowledged: dict[int, str] = {}
        self.num_texts = 0
        self.synced_bytes = 0
        self.write_budget: int | None = None
        self.how: BaseException | None = None
        self.sync_dies = ""
        self.ledger: Ledger | None = None

    @initialize()
    def begin(self) -> None:
        self._open()

    def _open(self) -> None:
        self.ledger = open_ledger(self.path, write=self._write, sync=self._sync)
        self.synced_bytes = self.path.stat().st_size

    def _write(self, fd: int, whole: memoryview) -> int:
        if self.write_budget is None:
            return os.write(fd, whole[: max(1, len(whole) // 2)])
        part = whole[: self.write_budget]
        self.write_budget -= len(part)
        if part:
            os.write(fd, part)
        if self.write_budget == 0:
            assert self.how is not None
            raise self.how
        return len(part)

    def _sync(self, fd: int) -> None:
        if self.sync_dies == "before":
            raise Killed
        os.fsync(fd)
        self.synced_bytes = os.fstat(fd).st_size
        if self.sync_dies == "after":
            raise Killed

    def _records(self, numbers: list[int]) -> list[Record]:
        assert self.ledger is not None
        made = []
        self.fresh: dict[int, str] = {}
        for number in numbers:
            self.num_texts += 1
            text = f"text {self.num_texts}"
            if number not in self.ledger.offsets and number not in self.fresh:
                self.attempted.setdefault(number, set()).add(text)
                self.fresh[number] = text
            made.append(record(number, text))
        return made

    def _acknowledge(self) -> None:
        """The append has returned: what was not there before it is there now."""
        self.acknowledged |= self.fresh

    numbers = st.lists(st.integers(0, NUM_REQUESTS - 1), min_size=1, max_size=4)

    @rule(numbers=numbers)
    def append(self, numbers: list[int]) -> None:
        made = self._records(numbers)
        self.ledger.append(made)
        self._acknowledge()

    @rule(numbers=numbers, budget=st.integers(0, 200))
    def append_to_a_full_disk(self, numbers: list[int], budget: int) -> None:
        self.write_budget, self.how = budget, OSError(errno.ENOSPC, "no space")
        made = self._records(numbers)
        try:
            self.ledger.append(made)
        except OSError:
            pass
        else:
            self._acknowledge()
        self.write_budget = None

    @rule(
        numbers=numbers,
        budget=st.none() | st.integers(0, 200),
        sync_dies=st.sampled_from(["", "before", "after"]),
        kept=st.floats(0, 1),
        changed=st.lists(st.tuples(st.floats(0, 1), st.integers(1, 255)), max_size=2),
    )
    def append_and_die(self, numbers, budget, sync_dies, kept, changed) -> None:
        self.write_budget, self.how, self.sync_dies = budget, Killed(), sync_dies
        made = self._records(numbers)
        try:
            self.ledger.append(made)
        except Killed:
            pass
        else:
            self._acknowledge()
        self.write_budget, self.sync_dies = None, ""
        os.close(self.ledger._fd)
        content = bytearray(self.path.read_bytes())
        unsynced = len(content) - self.synced_bytes
        if unsynced > 0:
            for place, bits in changed:
                content[self.synced_bytes + int(place * (unsynced - 1))] ^= bits
            del content[self.synced_bytes + int(kept * unsynced) :]
            self.path.write_bytes(content)
        self._open()

    @precondition(lambda self: self.acknowledged)
    @rule(place=st.floats(0, 1), bits=st.integers(1, 255))
    def rot(self, place: float, bits: int) -> None:
        """A byte changes: its record may be lost, and the next one when it was a line's end; no other."""
        self.ledger.close()
        content = bytearray(self.path.read_bytes())
        first = content.index(b"\n") + 1
        at = first + int(place * (len(content) - first - 1))
        before = bytes(content)
        content[at] ^= bits
        self.path.write_bytes(content)
        for near in (before[:at].count(b"\n"), before[: at + 1].count(b"\n")):
            lines = before.split(b"\n")
            if near < len(lines) and lines[near]:
                self._may_be_lost(lines[near])
        self._open()

    def _may_be_lost(self, line: bytes) -> None:
        try:
            number = json.loads(line.partition(b" ")[2])[0]
        except (ValueError, IndexError, TypeError):
            return
        self.acknowledged.pop(number, None)

    @invariant()
    def holds(self) -> None:
        if self.ledger is None:
            return
        read = {one.number: json.loads(bytes(one.line))["text"] for one in self.ledger.records()}
        for number, text in self.acknowledged.items():
            assert read.get(number) == text, "acknowledged and gone"
        for number, text in read.items():
            assert text in self.attempted[number], "never written"
        assert [one.number for one in self.ledger.in_order()] == sorted(read)

    def teardown(self) -> None:
        if self.ledger is not None:
            self.ledger.close()
        shutil.rmtree(self.folder)


LedgerMachine.TestCase.settings = settings(max_examples=120, stateful_step_count=20, deadline=None)
test_the_ledger_through_kills_full_disks_and_rot = LedgerMachine.TestCase
