"""The catalogue fits the source, and the runner tells a killed mutant from a clean core."""

from __future__ import annotations

import pytest

from tests.mutants.catalogue import MUTANTS
from tests.mutants.run import ROOT, verdict

SECONDS = 250.0


@pytest.mark.parametrize("mutant", MUTANTS, ids=[mutant.name for mutant in MUTANTS])
def test_a_mutant_fits_the_source_and_is_valid_python(mutant):
    text = (ROOT / "octavo" / "core" / mutant.file).read_text()
    assert text.count(mutant.old) == 1
    mutated = text.replace(mutant.old, mutant.new)
    assert mutated != text
    compile(mutated, mutant.file, "exec")


def test_names_are_unique_and_there_are_enough():
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 20


def test_one_mutant_is_killed_and_the_clean_core_is_not():
    tests = ["tests/core/test_keys.py"]
    (mutant,) = [m for m in MUTANTS if m.name == "extras are untyped: a salt can imitate an adapter"]
    assert verdict(None, SECONDS, tests) is None
    assert verdict(mutant, SECONDS, tests) == f"{tests[0]}::test_layout_of_a_key_is_the_documented_one"


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("mutant", MUTANTS, ids=[mutant.name for mutant in MUTANTS])
def test_every_mutant_is_killed(mutant):
    assert verdict(mutant, SECONDS) is not None
