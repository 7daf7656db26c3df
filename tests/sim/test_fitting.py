"""Which kind of time model is chosen, and that it is the one the steps were made with."""

from __future__ import annotations

import random

import pytest

from octavo.errors import ConfigError
from octavo.sim.fitting import choose, fit, fit_table
from octavo.sim.timing import Blend, Linear, Table, TimeModel, Work


def steps(count: int = 240) -> list[Work]:
    """Decodes, chunks and both, drawn at random."""
    draw = random.Random("steps")
    found = []
    for number in range(count):
        decodes = draw.randint(1, 32) if number % 3 != 1 else 0
        size, before = (draw.randint(2, 512), 16 * draw.randint(0, 40)) if number % 3 else (0, 0)
        found.append(
            Work(
                num_decodes=decodes,
                decode_context=decodes * draw.randint(20, 900),
                num_chunks=int(size > 0),
                chunk_tokens=size,
                chunk_pairs=size * before + size * (size + 1) // 2,
                chunk_context=before + size if size else 0,
                num_sampled=decodes + (draw.randint(0, 1) if size else 0),
            )
        )
    return found


def timed(model: TimeModel, noise: float = 0.0) -> list[tuple[Work, float]]:
    draw = random.Random("noise")
    return [(work, model.seconds(work) * (1 + draw.gauss(0, noise))) for work in steps()]


LINEAR = Linear(overhead_s=4e-4, seq_s=3e-5, token_s=6e-5, sampled_s=1e-5, context_s=4e-8, pair_s=2e-8)
BLEND = Blend(overhead_s=1e-3, seq_s=1e-5, weights_s=2e-2, token_s=2e-4, context_s=1e-7)


def test_a_line_is_found_again() -> None:
    chosen = choose(timed(LINEAR))
    assert chosen.kind == "linear"
    assert isinstance(chosen.model, Linear)
    assert chosen.model.token_s == pytest.approx(LINEAR.token_s, rel=1e-6)
    assert chosen.model.context_s == pytest.approx(LINEAR.context_s, rel=1e-6)
    assert chosen.error.p90 < 1e-6
    assert "linear" in chosen.because
    assert "table" in chosen.because


def test_where_reading_and_multiplying_overlap_no_line_is_as_near() -> None:
    chosen = choose(timed(BLEND))
    assert chosen.kind == "blend"
    assert chosen.error.median < 0.005 < chosen.errors["linear"].median


class Stairs:
    """Products in tiles of 8 rows: no sum of constants has steps."""

    needs_slices = False

    def seconds(self, work: Work) -> float:
        decode_s = 1e-3 + 4e-4 * -(-work.num_decodes // 8) if work.num_decodes else 0.0
        chunk_s = 1e-3 + 5e-3 * -(-work.chunk_tokens // 128) if work.num_chunks else 0.0
        both = 8e-4 if work.num_decodes and work.num_chunks else 0.0
        return decode_s + chunk_s - both + 3e-8 * work.decode_context


def test_stairs_are_kept_in_a_table() -> None:
    chosen = choose(timed(Stairs()))
    assert chosen.kind == "table"
    assert chosen.error.median < 0.8 * chosen.errors["linear"].median


def test_a_table_knows_what_chunks_cost_behind_others() -> None:
    made = Linear(overhead_s=1e-3, token_s=5e-5, pair_s=1e-7)
    table = fit_table(timed(made))
    assert isinstance(table, Table)
    near, far = (
        Work(
            num_chunks=1,
            chunk_tokens=256,
            chunk_pairs=256 * before + 256 * 257 // 2,
            chunk_context=before + 256,
        )
        for before in (0, 512)
    )
    assert table.seconds(far) - table.seconds(near) == pytest.approx(1e-7 * 256 * 512, rel=0.05)


@pytest.mark.parametrize("kind", ["linear", "blend", "table"])
def test_all_steps_together_take_what_they_took(kind: str) -> None:
    """But for the slowest hundredth, which is left out."""
    measured = timed(LINEAR, noise=0.1)
    model = fit(kind, measured)
    ratio = sorted((took_s / model.seconds(work), took_s, model.seconds(work)) for work, took_s in measured)
    kept = ratio[: round(len(ratio) * 0.99)]
    assert sum(took for _, took, _ in kept) == pytest.approx(sum(said for _, _, said in kept), rel=0.003)


def test_a_stall_does_not_bend_the_line() -> None:
    measured = timed(LINEAR)
    measured[7] = (measured[7][0], 100 * measured[7][1])
    assert choose(measured).error.median < 1e-3


def test_too_few_steps_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"29 measured steps are too few .* 30 are the least"):
        choose(timed(LINEAR)[:29])


def test_a_step_that_took_no_time_is_refused() -> None:
    with pytest.raises(ConfigError, match="should take some time"):
        choose([*timed(LINEAR), (steps()[0], 0.0)])


def test_only_decodes_of_one_width_give_a_model() -> None:
    works = [Work(num_decodes=4, decode_context=4 * n, num_sampled=4) for n in range(20, 80)]
    chosen = choose([(work, LINEAR.seconds(work)) for work in works])
    assert chosen.model.seconds(works[30]) == pytest.approx(LINEAR.seconds(works[30]), rel=1e-3)
