"""A process that compiles other people's grammars and may be killed for it: `python -m octavo.server.grammar_worker`.

It reads grammars from standard input and writes a verdict for each to standard output, see `send` and `receive`. A
grammar that takes more than its share of processor time or memory ends the process; whoever asked sees it go.
It ends with its standard input.
"""

from __future__ import annotations

import argparse
import resource
import signal
import struct
import sys
from typing import BinaryIO

import msgspec

from octavo.codec.grammar import Vocabulary, matcher
from octavo.codec.tokenizer import Tokenizer
from octavo.core.sequence import Grammar
from octavo.errors import OctavoError, RequestError

CPU_S = 1.0
MEMORY_BYTES = 256 * 2**20
_LENGTH = struct.Struct(">I")


class Verdict(msgspec.Struct, frozen=True, array_like=True):
    """What became of a grammar: "" and "" when it can be followed, else the error's code and its message."""

    code: str = ""
    message: str = ""


class Asked(msgspec.Struct, frozen=True, array_like=True):
    """A grammar to be compiled."""

    kind: str
    source: str


def send(stream: BinaryIO, message: Verdict | Asked) -> None:
    """One message: its length in four bytes, then MessagePack."""
    data = msgspec.msgpack.encode(message)
    stream.write(_LENGTH.pack(len(data)) + data)
    stream.flush()


def received(stream: BinaryIO) -> bytes | None:
    """The next message, or None when the other end is gone."""
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack(head)
    data = stream.read(length)
    return data if len(data) == length else None


def judged(asked: Asked, vocabulary: Vocabulary) -> Verdict:
    """The verdict on a grammar. A memory limit met inside Python is one as well; met elsewhere it ends the process."""
    try:
        matcher(Grammar(kind=asked.kind, source=asked.source), vocabulary)
    except RequestError as error:
        return Verdict(error.code, str(error))
    except MemoryError:
        return Verdict("schema_too_complex", "it needs more memory than is allowed")
    return Verdict()


def _limit_memory(extra_bytes: int) -> None:
    """From what is mapped now, so that neither the interpreter nor a large vocabulary counts."""
    with open("/proc/self/statm", encoding="ascii") as statm:
        mapped = int(statm.read().split()[0]) * resource.getpagesize()
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (mapped + extra_bytes, hard))


def main(arguments: list[str] | None = None) -> int:
    """First a verdict on itself, then one for each grammar. SIGPROF is left to end the process."""
    parser = argparse.ArgumentParser(prog="octavo.server.grammar_worker")
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--vocab-size", type=int, required=True)
    chosen = parser.parse_args(arguments)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    into, out = sys.stdin.buffer, sys.stdout.buffer
    try:
        vocabulary = Vocabulary(Tokenizer.from_path(chosen.tokenizer), chosen.vocab_size)
        matcher(Grammar(kind="json_object"), vocabulary)
    except OctavoError as error:
        send(out, Verdict(error.code, str(error)))
        return 1
    send(out, Verdict())
    while (data := received(into)) is not None:
        asked = msgspec.msgpack.decode(data, type=Asked)
        _limit_memory(MEMORY_BYTES)
        signal.setitimer(signal.ITIMER_PROF, CPU_S)
        verdict = judged(asked, vocabulary)
        signal.setitimer(signal.ITIMER_PROF, 0)
        send(out, verdict)
    return 0


if __name__ == "__main__":
    sys.exit(main())
