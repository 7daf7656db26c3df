"""Engines whose bits may depend on the batch, on the processor: the library's product is made to fit it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from octavo import LLM, SamplingParams
from octavo.cli.serve import _facts, _line
from octavo.engine.process import _ready
from octavo.errors import ConfigError
from octavo.explain.story import Story
from octavo.kernels import linear, native
from octavo.kernels.choose import fits_all
from octavo.models import ops
from octavo.models.loader import load
from octavo.obs import recording
from octavo.obs.flight import Opened
from tests.engine.tiny import engine

GREEDY = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)


@pytest.fixture
def _library(monkeypatch: pytest.MonkeyPatch) -> None:
    impls = tuple(
        dataclasses.replace(impl, refuses=fits_all) if impl.name == "library" else impl
        for impl in linear.IMPLS
    )
    monkeypatch.setattr(ops.linear, "IMPLS", impls)


def variant(model: Path) -> LLM:
    return engine(model, kernels="reference", batch_invariant=False)


@pytest.mark.usefixtures("_library")
def test_it_says_so_wherever_kernels_are_named(tiny: Path, tmp_path: Path) -> None:
    with variant(tiny) as llm:
        (found,) = llm.generate([[5, 6, 7]], GREEDY)
        llm.save_recording(tmp_path / "mine")
        ready = _ready(llm.built, 0.5)
    assert ready.batch_invariant is False
    assert [(one.name, one.is_batch_invariant) for one in ready.kernels if one.op == "linear"] == [
        ("library", False)
    ]
    assert all(one.is_batch_invariant for one in ready.kernels if one.op != "linear")
    assert ("batch_invariant", "false") in [(one.field, one.value) for one in ready.decisions]
    assert _line("http://here", "tiny", ready).endswith(" blocks, bits depend on the batch)")
    assert _facts("http://here", ready)["batch_invariant"] is False
    read = recording.read(tmp_path / "mine")
    opened = read.engines[0].opened
    assert isinstance(opened, Opened)
    assert opened.batch_invariant is False
    assert read.saved.settings["batch_invariant"] == "False"
    assert Story(read).overview(1)["about"]["batch invariant"] == "no, tokens depend on what ran beside them"
    with engine(tiny, kernels="reference") as other:
        (wanted,) = other.generate([[5, 6, 7]], GREEDY)
        other.save_recording(tmp_path / "other")
        plain = _ready(other.built, 0.5)
    assert found.outputs[0].token_ids == wanted.outputs[0].token_ids, (
        "in float32 no rounding turns a greedy token"
    )
    assert plain.batch_invariant is True
    assert "depend" not in _line("http://here", "tiny", plain)
    assert Story(recording.read(tmp_path / "other")).overview(1)["about"]["batch invariant"] == "yes"


@pytest.mark.usefixtures("_library")
def test_its_cached_keys_are_not_those_of_another_engine(tiny: Path) -> None:
    prints = {
        load(tiny, kernels="reference", batch_invariant=batch_invariant).fingerprint
        for batch_invariant in (True, False)
    }
    assert len(prints) == 2


def test_what_would_change_nothing_is_refused_before_a_weight_is_read(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("octavo.models.loader.Checkpoint.fill", None)
    with pytest.raises(ConfigError, match="batch_invariant=False would change nothing here: linear runs on"):
        load(tiny, kernels="reference", batch_invariant=False)
    if native.instruction_sets():
        with pytest.raises(ConfigError, match="the compiled kernels"):
            load(tiny, dtype=torch.float32, batch_invariant=False)
    with pytest.raises(ConfigError, match="batch_invariant=False would change nothing here"):
        engine(tiny, batch_invariant=False)
