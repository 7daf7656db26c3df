"""All rows at once: the same draws as row by row, in any company, without waiting for the device."""

import dataclasses
import math

import pytest
import torch

from octavo.core.sequence import SamplingParams
from octavo.decode.batched import draw
from octavo.decode.logprobs import BadLogits
from octavo.decode.sampler import Job
from octavo.kernels.sampling import TORCH, likeliest, ordered, whole_shares
from tests.decode.alone import sample_row

V = 600
PARAMS = [
    SamplingParams(temperature=0.0),
    SamplingParams(temperature=0.0, logprobs=7),
    SamplingParams(),
    SamplingParams(temperature=0.7, logprobs=0),
    SamplingParams(top_k=5, logprobs=3),
    SamplingParams(top_k=V + 9),
    SamplingParams(top_p=0.6),
    SamplingParams(temperature=1.7, top_k=50, top_p=0.9, min_p=0.02, logprobs=4),
    SamplingParams(min_p=0.1),
    SamplingParams(temperature=0.0, repetition_penalty=1.3, logprobs=2),
    SamplingParams(presence_penalty=0.8, frequency_penalty=0.3),
    SamplingParams(repetition_penalty=1.2, presence_penalty=-1.0, top_p=0.8),
    SamplingParams(temperature=0.0, logit_bias={3: 100.0, 5: -2.0}),
    SamplingParams(logit_bias={0: 4.0}, top_k=2, logprobs=1),
]


def rows(num_rows, seed=0):
    """Coarse values, so that many are equal."""
    values = torch.randn(num_rows, V, generator=torch.Generator().manual_seed(seed)) * 3
    return (values * 8).round() / 8


def jobs_for(logits, seed=5):
    """Every kind of parameters twice, on rows of any order; some with masks and forbidden tokens."""
    made = []
    allowed = torch.arange(V) % 3 == 0
    for i, params in enumerate(PARAMS * 2):
        made.append(
            Job(
                row=(7 * i) % len(logits), params=params, seed=seed + i, choice=i % 3, position=40 + i,
                prompt_tokens=[1, 2, 3, i], output_tokens=[i, i, 9, 11],
                suppressed=frozenset({int(logits[(7 * i) % len(logits)].argmax())} if i % 4 == 1 else ()),
                allowed=allowed if i % 5 == 2 else None,
            )
        )  # fmt: skip
    return made


def alone(logits, job):
    facts = {field.name: getattr(job, field.name) for field in dataclasses.fields(job)}
    return sample_row(logits[facts.pop("row")], **facts)


@pytest.mark.parametrize("seed", range(4))
def test_the_draws_are_those_of_one_row_at_a_time(seed):
    logits = rows(9, seed)
    kept = logits.clone()
    jobs = jobs_for(logits, seed=100 * seed)
    for job, got in zip(jobs, draw(logits, jobs).read(), strict=True):
        want = alone(logits, job)
        assert (got.token, got.rank) == (want.token, want.rank)
        assert [token for token, _ in got.top] == [token for token, _ in want.top]
        assert got.logprob == pytest.approx(want.logprob, abs=2e-5)
        assert [value for _, value in got.top] == pytest.approx([value for _, value in want.top], abs=2e-5)
    assert torch.equal(logits, kept)


def test_company_changes_no_bit(monkeypatch):
    logits = rows(9)
    jobs = jobs_for(logits)
    together = draw(logits, jobs).read()
    for i in (0, 1, 4, 7, 11, 13, 20):
        lonely = dataclasses.replace(jobs[i], row=0)
        (got,) = draw(logits[jobs[i].row : jobs[i].row + 1].clone(), [lonely]).read()
        assert got == together[i]
    monkeypatch.setattr("octavo.decode.batched.GROUP_BYTES", 1)
    assert draw(logits, jobs[::-1]).read() == together[::-1]


def test_bad_rows_spoil_their_own_jobs_only():
    logits = rows(5)
    logits[1, 7], logits[2, 3], logits[3] = math.nan, math.inf, -math.inf
    jobs = [Job(row=i % 5, params=PARAMS[i % len(PARAMS)], seed=1, choice=0, position=i) for i in range(20)]
    jobs.append(
        Job(
            row=0,
            params=SamplingParams(),
            seed=1,
            choice=0,
            position=1,
            allowed=torch.zeros(V, dtype=torch.bool),
        )
    )
    found = draw(logits, jobs).read()
    said = {0: None, 4: None, 1: "NaN", 2: "+inf", 3: "-inf"}
    for job, got in zip(jobs[:-1], found, strict=False):
        if said[job.row] is None:
            assert got == draw(logits[job.row : job.row + 1], [dataclasses.replace(job, row=0)]).read()[0]
        else:
            assert isinstance(got, BadLogits)
            assert said[job.row] in str(got)
    assert "forbidden" in str(found[-1])
    assert int(draw(logits, jobs).tokens.min()) >= 0
    assert int(draw(logits, jobs).tokens.max()) < V


def test_nothing_is_read_from_the_device():
    """A tensor without memory refuses to tell its values, its size after a selection, and whether it is true."""
    logits = torch.empty(9, V, device="meta")
    jobs = [dataclasses.replace(job, allowed=None) for job in jobs_for(rows(9))]
    drawn = draw(logits, jobs)
    assert drawn.tokens.shape == (len(jobs),)
    assert drawn.results.shape == (len(jobs), 4 + 2 * 7)


def test_the_likeliest_of_many_rows_are_those_of_each():
    logits = rows(6)
    logits[2, 4], logits[4, 5], logits[5] = math.nan, math.inf, -math.inf
    found = likeliest(logits)
    for row, want in enumerate(TORCH.greedy(logits)):
        assert int(found.problems[row]) == want.problem
        if not want.problem:
            assert int(found.tokens[row]) == want.token
            assert float(found.tops[row]) == float(logits[row].max())
            assert -float(found.log_masses[row]) == pytest.approx(want.logprob, abs=2e-6)


def test_shares_add_up_to_the_same_in_any_order():
    values = torch.randn(2, 5000, generator=torch.Generator().manual_seed(3)) * 5
    values[0, 17] = -math.inf
    top = values.amax(-1, keepdim=True)
    shares = whole_shares(values, top)
    assert int(shares[0, 17]) == 0
    order = torch.randperm(5000, generator=torch.Generator().manual_seed(4))
    assert torch.equal(shares.sum(-1), whole_shares(values[:, order], top).flip(1).cumsum(-1)[:, -1])
    want = (values - top).double().exp().sum(-1)
    assert torch.allclose(shares.sum(-1).double() / int(shares.max()), want, rtol=1e-9)


def test_ordered():
    values = torch.tensor([-math.inf, -2.5, -1e-40, -0.0, 0.0, 1e-40, 3.0, math.inf])
    numbers = ordered(values).tolist()
    assert numbers == sorted(set(numbers))
    assert all(-(2**31) <= number < 2**31 for number in numbers)
