"""The corpus: the same on every run of one Python, split by file, and true to the docstrings."""

import hashlib
import importlib
import inspect
import os
import subprocess
import sys

import pytest

from lab import corpus
from octavo.evals.score import first_sentence

DIGEST = """
import hashlib
from lab import corpus
train, held_out = corpus.split()
print(hashlib.sha256(repr((train, held_out, corpus.entries())).encode()).hexdigest())
"""


@pytest.fixture(scope="module")
def entries():
    return corpus.entries()


@pytest.fixture(scope="module")
def split():
    return corpus.split()


def test_the_corpus_does_not_depend_on_the_process(entries, split):
    """A fresh process with another hash seed, which has not imported what the tests import, builds the same."""
    here = hashlib.sha256(repr((*split, entries)).encode()).hexdigest()
    environment = {**os.environ, "PYTHONHASHSEED": "12345"}
    run = subprocess.run(
        [sys.executable, "-c", DIGEST], capture_output=True, text=True, env=environment, check=True
    )
    assert run.stdout.strip() == here


def test_held_out_files_are_whole_and_apart(split):
    train, held_out = ([source.name for source in part] for part in split)
    assert not set(train) & set(held_out)
    apart = {source.name for source in corpus.sources()} - set(train) - set(held_out)
    assert len(apart) < 10
    assert all(corpus.is_held_out(source) == (source.name not in train) for source in corpus.sources())
    assert len(held_out) >= 20
    share = sum(len(s.text) for s in split[1]) / sum(len(s.text) for part in split for s in part)
    assert 0.02 < share < 0.08


def test_no_question_is_about_a_held_out_file(split):
    asked = {
        f"{module.replace('.', '/')}{end}" for module in corpus.QA_MODULES for end in (".py", "/__init__.py")
    }
    assert not asked & {source.name for source in split[1]}


def test_validation_text_holds_no_answer(split, entries):
    """Searched token by token, comment marks and line breaks aside."""
    for source in split[1]:
        words = [word for word in source.text.replace("#", " ").split() if word]
        starts = {}
        for place, word in enumerate(words):
            starts.setdefault(word, []).append(place)
        for entry in entries:
            answer = entry.sentence.split()
            assert all(words[p : p + len(answer)] != answer for p in starts.get(answer[0], ()))


def test_tests_and_vendored_tools_are_left_out(split):
    names = [source.name for part in split for source in part]
    assert len(names) > 200
    folders = {folder for name in names for folder in name.split("/")[:-1]}
    assert not folders & {"test", "tests", "lib2to3", "idlelib", "site-packages"}


def found(name):
    """The object of a dotted name, by import and attribute access."""
    parts = name.split(".")
    for cut in range(len(parts) - 1, -1, -1):
        try:
            value = importlib.import_module(".".join(parts[:cut]) or "builtins")
        except ImportError:
            continue
        for part in parts[cut:]:
            value = getattr(value, part)
        return value
    raise LookupError(name)


REPLACED = {"sys.unraisablehook", "sys.excepthook", "inspect.getfile"}
"""What test runners and tensor libraries put their own functions in place of."""


def test_answers_are_the_docstrings_own_words(entries):
    for entry in entries:
        if entry.name in REPLACED:
            continue
        document = " ".join(inspect.cleandoc(found(entry.name).__doc__).split())
        assert document.startswith(entry.sentence)
        assert document.startswith(entry.paragraph)
        assert first_sentence(entry.paragraph) == entry.sentence


def test_names_are_asked_about_once(entries):
    names = [entry.name for entry in entries]
    assert names == sorted(set(names))
    assert 1500 <= len(names) <= 2500
    assert {"textwrap.dedent", "len", "str.split", "json.loads", "os.path.join"} <= set(names)


def test_signatures_are_pythons_own(entries):
    checked = 0
    for entry in entries:
        if entry.signature and entry.name not in REPLACED:
            assert entry.signature == entry.name + str(inspect.signature(found(entry.name)))
            checked += 1
    assert checked > 1000
