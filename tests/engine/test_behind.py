"""Steps launched behind running ones give every request the same bits: the engine's whole path, without a device."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from octavo import LLM, SamplingParams
from octavo.core.sequence import Grammar
from octavo.engine import build
from octavo.engine.loop import Engine
from octavo.exec.draws import draw_together
from octavo.exec.graphs import Graphs, Sizes
from octavo.exec.runner import Pending, Runner
from octavo.kv.pool import KvPool
from octavo.models.model import Model
from tests.engine.test_exact import bits, jobs, run, tokens
from tests.engine.tiny import engine


def engine_of(
    model: str, monkeypatch: pytest.MonkeyPatch, *, behind: bool, graphs: bool = False, **more: Any
) -> LLM:
    """An engine that draws as a device does."""

    def runner(loaded: Model, kv: KvPool, **_: Any) -> Runner:
        forward = None
        if graphs:
            sizes = Sizes(max_seqs=8, max_positions=kv.num_blocks * kv.layout.block_tokens, width=64)
            forward = Graphs(loaded, kv, sizes, capture=lambda work: work)
        return Runner(loaded, kv, forward=forward, draw=draw_together(loaded))

    with monkeypatch.context() as patch:
        patch.setattr(build, "Runner", runner)
        patch.setattr(
            build, "Engine", lambda *args, **options: Engine(*args, **options | {"launches_behind": behind})
        )
        llm = engine(model, max_model_len=128, **more)
    llm.engine._executor.kv.poison(range(llm.built.plan.resolved.limits.num_blocks))  # type: ignore[attr-defined]
    return llm


@pytest.fixture(params=["tiny", "sliding"])
def model(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue(request.param))


@pytest.mark.parametrize(
    "settings",
    [{}, {"max_num_batched_tokens": 16, "max_num_seqs": 3}, {"num_kv_blocks": 24, "max_num_seqs": 8}],
    ids=["roomy", "chunked", "tight"],
)
def test_every_request_gets_its_bits(
    model: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = jobs(model)
    found = []
    for behind, graphs in ((False, False), (True, False), (True, True)):
        with engine_of(
            model, monkeypatch, behind=behind, graphs=graphs, kernels="reference", **settings
        ) as llm:
            found.append([bits(output) for output in run(llm, wanted)])
    assert found[1] == found[0]
    assert found[2] == found[0]


def test_what_follows_tokens_and_what_ends_early(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beams, a grammar, bad words and stop tokens: their next step waits for tokens, or comes to nothing."""
    plain = SamplingParams(temperature=0.0, max_tokens=14)
    kinds = [
        SamplingParams(temperature=1.0, beam_width=3, max_tokens=6),
        replace(plain, grammar=Grammar(kind="regex", source="[ab]{2,9}")),
        replace(plain, bad_words=("a", "the")),
        replace(plain, temperature=1.3, seed=3, stop_token_ids=tuple(range(0, 250, 3))),
        replace(plain, n=2, temperature=0.8, seed=4, min_tokens=5),
        replace(plain, max_tokens=1),
    ]
    prompts = [tokens(str(tiny), 5 + i, i) for i in range(len(kinds))]
    found = []
    for behind in (False, True):
        with engine_of(str(tiny), monkeypatch, behind=behind, kernels="reference") as llm:
            outputs = llm.generate(prompts, kinds)
            llm.engine.scheduler.check()
            found.append(
                [[(one.token_ids, one.finish_reason, one.text) for one in out.outputs] for out in outputs]
            )
    assert found[1] == found[0]


def test_two_steps_are_under_way(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next step has been launched by the time a step's result is asked for."""
    lines: list[str] = []
    launch, result = Runner.launch, Pending.result

    def noted(self: Runner, *args: Any) -> Pending:
        pending = launch(self, *args)
        lines.append(f"launch {args[0].number}")
        return pending

    def asked(self: Pending) -> Any:
        if self._result is None:
            lines.append(f"read {self._number}")
        return result(self)

    monkeypatch.setattr(Runner, "launch", noted)
    monkeypatch.setattr(Pending, "result", asked)
    with engine_of(str(tiny), monkeypatch, behind=True, kernels="reference") as llm:
        lines.clear()
        llm.generate([[1, 2, 3]], SamplingParams(temperature=0.0, max_tokens=4, ignore_eos=True))
    read = [line for line in lines if line.startswith("read")]
    assert len(read) >= 4
    for line in read[:3]:
        number = int(line.split()[1])
        assert lines.index(f"launch {number + 1}") < lines.index(line)


def test_a_device_that_breaks_reaches_the_caller(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with engine_of(str(tiny), monkeypatch, behind=True, kernels="reference") as llm:
        calls: Iterator[int] = iter(range(100))
        launch = partial(Runner.launch, llm.engine._executor)  # type: ignore[arg-type]

        def failing(*args: Any) -> Pending:
            if next(calls) >= 2:
                raise RuntimeError("the device is gone")
            return launch(*args)

        llm.engine._executor.launch = failing  # type: ignore[attr-defined]
        with pytest.raises(Exception, match="the device is gone"):
            llm.generate([[1], [2]], SamplingParams(max_tokens=9))
