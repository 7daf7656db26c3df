"""Shipped incidents, each played once for all tests of a process."""

from __future__ import annotations

from functools import cache

from octavo.explain.cases import case
from octavo.explain.causes import findings
from octavo.explain.figures import Figures
from octavo.explain.scenes import play
from octavo.explain.signs import Finding
from octavo.explain.story import Story
from octavo.explain.whatif import WhatIf, what_if
from octavo.obs.recording import Recording
from octavo.sim.world import Outcome


@cache
def played(name: str) -> tuple[Recording, Outcome]:
    return play(case(name).scene)


@cache
def figures(name: str) -> Figures:
    return Figures(Story(played(name)[0]))


@cache
def found(name: str) -> tuple[Finding, ...]:
    return tuple(findings(figures(name)))


@cache
def tried(name: str) -> WhatIf:
    return what_if(figures(name), found(name)[0])
