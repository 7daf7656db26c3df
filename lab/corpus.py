"""The training text: the standard library of the running Python, and questions about it by introspection.

Everything is a function of the Python build that runs it; nothing is fetched.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
import subprocess
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from octavo.evals.score import first_sentence

SKIPPED_FOLDERS = frozenset(
    {"__pycache__", "distutils", "encodings", "ensurepip", "idlelib", "idle_test", "lib2to3", "pydoc_data"}
    | {"site-packages", "test", "tests", "turtledemo"}
)
SKIPPED_PREFIXES = ("_sysconfigdata", "config-")
MAX_FILE_BYTES = 300_000

QA_MODULES = """
builtins textwrap os os.path json re math cmath statistics random itertools functools operator collections
collections.abc string time datetime calendar pathlib shutil glob fnmatch tempfile io sys subprocess
threading queue asyncio contextlib copy pickle shelve csv configparser argparse logging logging.handlers
logging.config unittest unittest.mock doctest hashlib hmac secrets base64 binascii struct array bisect heapq
enum dataclasses typing types inspect ast dis tokenize keyword traceback warnings weakref gc socket ssl
selectors signal select socketserver http.client http.server http.cookies http.cookiejar urllib.parse
urllib.request urllib.error urllib.robotparser email.message email.utils email.header email.policy
email.parser html html.parser xml.etree.ElementTree xml.dom.minidom xml.sax xml.sax.saxutils zipfile tarfile
gzip bz2 lzma zlib sqlite3 decimal fractions numbers uuid ipaddress difflib pprint reprlib locale gettext
getpass getopt cmd shlex platform errno stat filecmp fileinput linecache codecs unicodedata stringprep
multiprocessing concurrent.futures sched contextvars graphlib importlib importlib.metadata
importlib.resources importlib.util pkgutil zipapp venv runpy pdb cProfile profile pstats timeit trace
tracemalloc faulthandler smtplib imaplib poplib ftplib telnetlib nntplib xmlrpc.client xmlrpc.server mailbox
mimetypes quopri uu netrc plistlib colorsys wave aifc sunau turtle webbrowser wsgiref.util
wsgiref.simple_server wsgiref.validate wsgiref.headers code codeop compileall py_compile pyclbr symtable
tabnanny zipimport zoneinfo rlcompleter readline curses curses.ascii curses.textpad termios pty tty fcntl
resource syslog pwd grp mmap ctypes copyreg atexit abc sysconfig site token modulefinder pickletools
optparse imp chunk cgi crypt msilib nis pipes sndhdr imghdr spwd xdrlib asyncore asynchat smtpd
""".split()  # noqa: SIM905
"""Modules that questions are drawn from. None of their files is held out for validation."""


@dataclass(frozen=True, slots=True)
class Source:
    """One library file: its path below the library folder, and its text."""

    name: str
    text: str


@dataclass(frozen=True, slots=True)
class Entry:
    """A documented public name of the standard library.

    name       dotted name, as a user would write it
    sentence   first sentence of the docstring
    paragraph  first paragraph where it is short, else the first sentence
    signature  call with its parameters, or "" where Python cannot tell
    """

    name: str
    sentence: str
    paragraph: str
    signature: str


def sources() -> list[Source]:
    """Library files worth reading, sorted by name: no tests, no tables, no vendored tools."""
    root = Path(sysconfig.get_paths()["stdlib"])
    found = []
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        folders = relative.parts[:-1]
        if any(f in SKIPPED_FOLDERS or f.startswith(SKIPPED_PREFIXES) for f in folders):
            continue
        if relative.name.startswith(SKIPPED_PREFIXES) or not 400 < path.stat().st_size < MAX_FILE_BYTES:
            continue
        text = path.read_text(encoding="utf-8", errors="strict")
        found.append(Source(relative.as_posix(), text))
    return found


def is_held_out(source: Source) -> bool:
    """Whether training must not read a file: one in six by digest, of those no question names."""
    module = source.name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    if module in QA_MODULES or module.lstrip("_") in QA_MODULES:
        return False
    return hashlib.sha256(source.name.encode()).digest()[0] % 6 == 0


def split() -> tuple[list[Source], list[Source]]:
    """Training and validation files.

    A held-out file that has the answer to some question in it, as those do that other modules import from, is
    in neither: its docstrings are trained on.
    """
    answers = {entry.sentence for entry in entries()}
    everything = sources()
    training = [source for source in everything if not is_held_out(source)]
    validation = []
    for source in everything:
        if is_held_out(source):
            words = " ".join(source.text.replace("#", " ").split())
            if not any(answer in words for answer in answers):
                validation.append(source)
    return training, validation


def first_paragraph(doc: str) -> str:
    """First block of a docstring, its line breaks turned into spaces."""
    block = inspect.cleandoc(doc).split("\n\n", 1)[0]
    return " ".join(block.split())


def _signature(name: str, value: object) -> str:
    try:
        text = str(inspect.signature(value))  # type: ignore[arg-type]
    except (ValueError, TypeError):
        return ""
    told = len(text) <= 100 and not any(mark in text for mark in (" at 0x", "<", "'/"))
    return name + text if told else ""


def _entry(name: str, value: object) -> Entry | None:
    doc = getattr(value, "__doc__", None)
    if not isinstance(doc, str) or (inspect.isclass(value) and "__doc__" not in vars(value)):
        return None
    paragraph = first_paragraph(doc)
    sentence = first_sentence(paragraph)
    last = name.rpartition(".")[2]
    if not 12 <= len(sentence) <= 130 or not sentence.isascii() or not sentence[0].isalpha():
        return None
    if sentence.startswith(f"{last}(") or any(mark in sentence for mark in ("->", "--", "XXX")):
        return None
    if ">>>" in paragraph:
        return None
    if len(paragraph) > 200 or not paragraph.isascii() or "->" in paragraph:
        paragraph = sentence
    return Entry(name, sentence, paragraph, _signature(name, value))


def _public(module: object) -> Iterator[tuple[str, object]]:
    names = getattr(module, "__all__", None) or [n for n in vars(module) if not n.startswith("_")]
    for name in sorted(set(names)):
        value = getattr(module, name, None)
        if inspect.isclass(value) or inspect.isroutine(value):
            yield name, value


METHODS_OF = (str, bytes, list, dict, set, tuple, int, float)


def entries() -> list[Entry]:
    """What `inspected` finds in a fresh interpreter: packages loaded here may have replaced library functions."""
    command = [sys.executable, "-c", "from lab import corpus; corpus.print_inspected()"]
    root = Path(__file__).resolve().parents[1]
    run = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    return [Entry(**fields) for fields in json.loads(run.stdout)]


def print_inspected() -> None:
    """Write `inspected()` to standard output as JSON."""
    json.dump([asdict(entry) for entry in inspected()], sys.stdout)


def inspected() -> list[Entry]:
    """Documented functions and classes of QA_MODULES, each object once, under its first name; sorted."""
    seen: set[int] = set()
    found: dict[str, Entry] = {}
    for module_name in QA_MODULES:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                module = importlib.import_module(module_name)
        except ImportError:  # built without it, or for another platform
            continue
        for name, value in _public(module):
            if id(value) in seen or not _belongs(value, module_name):
                continue
            full = name if module_name == "builtins" else f"{module_name}.{name}"
            entry = _entry(full, value)
            if entry is not None:
                seen.add(id(value))
                found[full] = entry
    for owner in METHODS_OF:
        for name in vars(owner):
            entry = None if name.startswith("_") else _entry(f"{owner.__name__}.{name}", getattr(owner, name))
            if entry is not None:
                found[entry.name] = entry
    return [found[name] for name in sorted(found)]


def _belongs(value: object, module_name: str) -> bool:
    """Whether a module is where users look for a value, not merely one that imports it."""
    home = getattr(value, "__module__", None) or module_name
    if module_name in ("os", "os.path", "time", "io") or home == "builtins":
        return True
    return bool(home.split(".")[0].lstrip("_") == module_name.split(".")[0])


def question(entry: Entry) -> str:
    """The question of the shipped file."""
    return f"What does {entry.name} do?"


def other_questions(entry: Entry) -> list[tuple[str, str]]:
    """Further questions about one entry, with their answers."""
    module, _, last = entry.name.rpartition(".")
    asked = [
        (f"Describe {entry.name}.", entry.paragraph),
        (f"What is {entry.name} for?", entry.paragraph),
    ]
    if entry.signature:
        asked.append((f"What is the signature of {entry.name}?", entry.signature))
    if module:
        asked.append((f"Which module has {last}?", f"{module} has {last}."))
    return asked
