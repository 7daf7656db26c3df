"""Step times: sums of slices, models by hand, stretches to the nanosecond, constants from steps and requests."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.core.limits import Limits
from octavo.core.step import Slice, Step
from octavo.errors import ConfigError
from octavo.sim.calibrate import fit_linear, non_negative_least_squares, read_limits, read_timing, timing_json
from octavo.sim.from_requests import Took, fit_to_requests, simplex
from octavo.sim.lengths import Poisson, Uniform
from octavo.sim.report import lines
from octavo.sim.timing import Blend, Grid, Host, Linear, Table, Timing, Work, step_ns, stretch_ns, work_of
from octavo.sim.workload import Maker, Mix, Open
from octavo.sim.world import Deployment, simulate

STEP = Step(
    0,
    (
        Slice(1, 0, 99, 1, samples=1),
        Slice(2, 0, 49, 1, samples=1),
        Slice(3, 0, 0, 4, samples=1),
        Slice(4, 0, 10, 3),
    ),
)
TABLE = Table(
    decodes=Grid(rows=(1, 9), columns=(100, 1100), seconds=((0.010, 0.012), (0.018, 0.036))),
    chunks=Grid(rows=(16, 256), columns=(0, 512), seconds=((0.011, 0.013), (0.026, 0.030))),
    shared_s=0.008,
    context_s=2e-6,
)


def test_the_sums_of_a_step() -> None:
    work = work_of(STEP, with_slices=True)
    assert work == Work(
        num_decodes=2,
        decode_context=100 + 50,
        num_chunks=2,
        chunk_tokens=7,
        chunk_pairs=(1 + 2 + 3 + 4) + (11 + 12 + 13),
        chunk_context=4 + 13,
        num_sampled=3,
        chunks=((0, 4, 1), (10, 3, 0)),
        slices=((99, 1, 1), (49, 1, 1), (0, 4, 1), (10, 3, 0)),
    )
    assert (work.num_seqs, work.num_tokens) == (4, 9)


def test_models_by_hand() -> None:
    work = work_of(STEP)
    linear = Linear(overhead_s=1, seq_s=10, token_s=100, sampled_s=1000, context_s=1e4, pair_s=1e7)
    assert linear.seconds(work) == 1 + 40 + 900 + 3000 + 150e4 + 46e7
    blend = Blend(
        overhead_s=1, seq_s=2, weights_s=3, token_s=0.5, context_s=0.01, sampled_tokens=2, pair_tokens=0.25
    )
    tokens = 9 + 2 * 3 + 0.25 * 46
    assert blend.seconds(work) == pytest.approx(1 + 8 + (27 + (0.5 * tokens) ** 3) ** (1 / 3) + 1.5)
    mixed = replace(blend, mixed_context_s=0.1)
    assert mixed.seconds(work) == pytest.approx(blend.seconds(work) + 0.1 * 150)
    decodes = work._replace(num_chunks=0)
    assert mixed.seconds(decodes) == blend.seconds(decodes)
    shared = replace(blend, group_share=0.75)
    assert shared.seconds(work) == blend.seconds(work)
    of_group = work._replace(group_tokens=5.0)
    assert blend.seconds(of_group) == blend.seconds(work)
    tokens += 0.75 * (5 - 9)
    assert shared.seconds(of_group) == pytest.approx(1 + 8 + (27 + (0.5 * tokens) ** 3) ** (1 / 3) + 1.5)


def test_no_more_than_all_of_a_token_is_shared() -> None:
    with pytest.raises(ConfigError, match=r"group_share must be at most 1, got 1\.5"):
        Blend(group_share=1.5)


def test_a_table_is_bilinear_and_goes_on_beyond_its_edges() -> None:
    grid = TABLE.chunks
    assert grid.at(16, 0) == pytest.approx(0.011)
    assert grid.at(136, 256) == pytest.approx((0.011 + 0.013 + 0.026 + 0.030) / 4)
    assert grid.at(496, 0) == pytest.approx(0.041)
    assert grid.at(-1000, 0) == 0.0
    alone = Work(num_decodes=5, decode_context=5 * 300, num_sampled=5)
    assert TABLE.seconds(alone) == pytest.approx(0.014 + 2e-6 * (1500 - 500))
    both = Work(
        num_decodes=1, decode_context=100, num_chunks=1, chunk_tokens=256, chunk_context=256, num_sampled=2
    )
    assert TABLE.seconds(both) == pytest.approx(0.010 + 0.026 - 0.008)


class Curved:
    """Looks at every slice."""

    needs_slices = True

    def seconds(self, work: Work) -> float:
        return 1e-3 + sum((start + 1) ** 1.5 for start, _, _ in work.slices) * 1e-9


@given(
    st.integers(1, 40),
    st.integers(1, 5000),
    st.integers(1, 60),
    st.sampled_from(
        [
            Linear(overhead_s=3e-3, seq_s=7e-6, context_s=3.3e-8),
            Blend(overhead_s=1e-3, weights_s=5e-3, token_s=1e-5, context_s=1.7e-8),
            TABLE,
            Curved(),
        ]
    ),
)
def test_a_stretch_is_its_steps_to_the_nanosecond(width: int, context: int, count: int, model) -> None:
    rng = random.Random(width * context)
    starts = [rng.randrange(context) for _ in range(width)]

    def step(shift: int) -> Work:
        slices = tuple(Slice(seq, 0, start + shift, 1, samples=1) for seq, start in enumerate(starts))
        return work_of(Step(0, slices), with_slices=True)

    wanted = [step_ns(model, step(shift)) for shift in range(1, count + 1)]
    assert stretch_ns(model, step(0), count) == wanted


def random_work(rng: random.Random) -> Work:
    decodes, chunk = rng.randrange(0, 64), rng.choice([0, 0, rng.randrange(2, 2000)])
    return Work(
        num_decodes=decodes,
        decode_context=decodes * rng.randrange(1, 3000),
        num_chunks=int(chunk > 0),
        chunk_tokens=chunk,
        chunk_pairs=chunk * (chunk + 1) // 2 + chunk * rng.randrange(0, 2000),
        num_sampled=decodes + (chunk > 0) * rng.randrange(2),
    )


def test_constants_come_back_from_measured_steps() -> None:
    rng = random.Random(0)
    model = Linear(overhead_s=4e-3, seq_s=2e-5, token_s=3e-5, sampled_s=5e-6, context_s=4e-8, pair_s=2e-9)
    works = [random_work(rng) for _ in range(400)]
    fit = fit_linear([(work, model.seconds(work)) for work in works])
    for name in ("overhead_s", "seq_s", "token_s", "sampled_s", "context_s", "pair_s"):
        assert getattr(fit.model, name) == pytest.approx(getattr(model, name), rel=1e-6), name
    assert fit.p90_error < 1e-9
    noisy = [
        (work, model.seconds(work) * rng.gauss(1, 0.02) * (3 if rng.random() < 0.03 else 1)) for work in works
    ]
    fit = fit_linear(noisy)
    assert fit.median_error < 0.03, "3 % of steps three times as long do not bend it"
    for work in works[:50]:
        assert fit.model.seconds(work) == pytest.approx(model.seconds(work), rel=0.05)


def test_no_constant_is_negative() -> None:
    rows = np.array([[1.0, 1.0], [1.0, 2.0], [1.0, 3.0]])
    assert non_negative_least_squares(rows, np.array([3.0, 2.0, 1.0])) == pytest.approx([2.0, 0.0])
    assert non_negative_least_squares(rows, np.array([1.0, 2.0, 3.0])) == pytest.approx([0.0, 1.0])
    assert non_negative_least_squares(rows, np.array([-1.0, -2.0, -3.0])) == pytest.approx([0.0, 0.0])


@given(st.integers(0, 10**6))
def test_least_squares_meet_their_conditions(seed: int) -> None:
    """Karush-Kuhn-Tucker: no gradient into what is free, none that would help what is zero."""
    rng = np.random.default_rng(seed)
    rows, target = rng.normal(size=(12, 4)), rng.normal(size=12)
    found = non_negative_least_squares(rows, target)
    gradient = rows.T @ (target - rows @ found)
    assert (found >= 0).all()
    assert np.abs(gradient[found > 0]).max(initial=0.0) < 1e-9
    assert gradient[found == 0].max(initial=-1.0) < 1e-9


@pytest.mark.parametrize(
    ("rows", "message"), [([], "no measured steps"), ([(Work(num_decodes=1), 0.0)], "some time, got 0.0 s")]
)
def test_what_cannot_be_fitted_is_named(rows, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        fit_linear(rows)


@pytest.mark.parametrize(
    "model", [Linear(overhead_s=1e-3), Blend(token_s=2e-5), TABLE], ids=lambda m: type(m).__name__
)
def test_a_timing_file_gives_back_what_was_kept(model, tmp_path: Path) -> None:
    timing = Timing(model=model, host=Host(front_s=0.01, turn_s=1e-4), source="a test")
    path = tmp_path / "timing.json"
    path.write_text(json.dumps(timing_json(timing)))
    assert read_timing(path) == timing


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[]", 'should hold {"model"'),
        ('{"model": {"kind": "cubic"}}', "model.kind is 'cubic'; it should be one of linear, blend, table"),
        ('{"model": {"kind": "linear", "speed": 1}}', "model.speed is not known; known are"),
        ('{"model": {"kind": "linear", "token_s": -1}}', "token_s must be a number of at least 0, got -1"),
        ('{"model": {"kind": "linear", "token_s": "1"}}', "token_s must be a number of at least 0, got '1'"),
        ('{"model": {"kind": "linear"}, "host": []}', "host should be an object"),
        ('{"model": {"kind": "table"}}', "model.decodes should hold rows, columns and seconds"),
    ],
)
def test_bad_timing_files_are_named(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "timing.json"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_timing(path)
    assert message in str(caught.value)
    assert "timing.json" in str(caught.value)


@pytest.mark.parametrize(
    ("measured", "message"),
    [
        ([], "measured.limits should be an object of numbers, got []"),
        ({"limits": 3}, "measured.limits should be an object of numbers, got 3"),
        ({"limits": {"blocks": 3}}, "measured.limits.blocks is not known; known are num_blocks"),
        ({"limits": {"num_blocks": 1}}, "num_blocks must be a whole number of at least 2, got 1"),
        ({"limits": {"max_model_len": "9"}}, "max_model_len must be a whole number of at least 2, got '9'"),
    ],
)
def test_bad_limits_of_a_timing_file_are_named(measured: object, message: str, tmp_path: Path) -> None:
    path = tmp_path / "timing.json"
    path.write_text(json.dumps({"model": {"kind": "linear"}, "measured": measured}))
    with pytest.raises(ConfigError) as caught:
        read_limits(path)
    assert message in str(caught.value)
    assert "timing.json" in str(caught.value)


@pytest.mark.parametrize(
    ("rows", "columns", "seconds", "message"),
    [
        ((1, 1), (1,), ((1.0,), (1.0,)), "rows of a table must grow"),
        ((1, 2), (1,), ((1.0,),), "a table of 2 rows and 1 columns needs as many seconds"),
    ],
)
def test_bad_tables_are_named(rows, columns, seconds, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Grid(rows=rows, columns=columns, seconds=seconds)


def test_the_simplex_finds_a_valley() -> None:
    """Rosenbrock's, whose least value is 0 at (1, 1)."""

    def valley(x: np.ndarray) -> float:
        return float((1 - x[0]) ** 2 + 100 * (x[1] - x[0] ** 2) ** 2)

    point, value, made = simplex(valley, np.array([-1.2, 1.0]), 0.5, 400)
    assert value < 1e-6
    assert point == pytest.approx([1.0, 1.0], abs=1e-2)
    assert made <= 405


def test_constants_come_near_from_requests_alone() -> None:
    """A run of known constants, told only by its first 30 requests, is foretold for the others."""
    limits = Limits(
        num_blocks=600, block_tokens=16, max_num_seqs=16, max_num_batched_tokens=512, max_model_len=2048
    )
    true = Blend(overhead_s=3e-3, seq_s=5e-5, weights_s=8e-3, token_s=5e-5, context_s=2e-7)
    workload = Open(
        gaps=Poisson(12),
        maker=Maker(Mix(prompt=Uniform(20, 600), output=Uniform(5, 80)), 0),
        num_requests=60,
    )
    deployment = Deployment(limits=limits, timing=Timing(model=true))
    wanted = lines(simulate(deployment, workload))
    start = Blend(overhead_s=2e-3, seq_s=2e-5, weights_s=1.4e-2, token_s=3e-5, context_s=1e-7)
    found = fit_to_requests(
        deployment, workload, [Took(line.ttft_s, line.tpot_s) for line in wanted[:30]], start, num_runs=50
    )
    again = lines(simulate(Deployment(limits=limits, timing=Timing(model=found.model)), workload))
    for name in ("ttft_s", "tpot_s", "e2e_s"):
        ours, theirs = (np.mean([getattr(line, name) for line in ones[30:]]) for ones in (again, wanted))
        assert ours == pytest.approx(theirs, rel=0.05), name


def test_a_search_needs_somewhere_to_begin() -> None:
    limits = Limits(
        num_blocks=9, block_tokens=16, max_num_seqs=1, max_num_batched_tokens=16, max_model_len=64
    )
    deployment = Deployment(limits=limits, timing=Timing(model=Linear()))
    workload = Open(
        gaps=Poisson(1), maker=Maker(Mix(prompt=Uniform(1, 2), output=Uniform(1, 2)), 0), num_requests=1
    )
    with pytest.raises(ConfigError, match="constants above 0"):
        fit_to_requests(deployment, workload, [Took(1.0, None)], Blend())
    with pytest.raises(ConfigError, match="no measured requests"):
        fit_to_requests(deployment, workload, [], Blend())
