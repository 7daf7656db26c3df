"""The sampler: every parameter counts, the distribution is the stated one, and company changes nothing."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.core.sequence import SamplingParams
from octavo.decode import sampler
from octavo.decode.logprobs import BadLogits, Choice, prompt_logprobs
from octavo.decode.sampler import Job, check_params
from octavo.errors import RequestError
from octavo.kernels import native
from octavo.kernels.sampling import TORCH, Sampling
from octavo.kernels.sampling.native import NativeSampling
from tests.decode import alone

GREEDY = SamplingParams(temperature=0.0)
INF = math.inf


class Using:
    """What draws in this run of the module."""

    sampling: Sampling = TORCH


@pytest.fixture(autouse=True, scope="module", params=["torch", *native.instruction_sets()[:1]])
def using(request):
    isa = request.param
    if isa != "torch":
        Using.sampling = NativeSampling(native.module().Program(isa, 2, "float32", 1, 1, 2, 16, 1e-6))
    yield
    Using.sampling = TORCH


def sample_row(*args, **named):
    return alone.sample_row(*args, **named, sampling=Using.sampling)


def sample_rows(values, jobs):
    return sampler.sample_rows(values, jobs, Using.sampling)


def row(*values):
    return torch.tensor(values, dtype=torch.float32)


def logits(num_rows, size, seed=0, scale=3.0):
    return torch.randn(num_rows, size, generator=torch.Generator().manual_seed(seed)) * scale


def token(values, params=GREEDY, prompt=(), output=(), suppressed=frozenset(), allowed=None, **draw):
    place = {"seed": 0, "choice": 0, "position": 0, **draw}
    mask = None if allowed is None else torch.tensor([i in allowed for i in range(values.numel())])
    return sample_row(
        values,
        params,
        prompt_tokens=prompt,
        output_tokens=output,
        suppressed=suppressed,
        allowed=mask,
        **place,
    ).token


# ---- the distribution, by its definition in float64


def probabilities(values, params, prompt=(), output=(), suppressed=(), allowed=None):
    """Exact probabilities of every token, from the definitions, in plain Python."""
    scores = [value if allowed is None or i in allowed else -INF for i, value in enumerate(values)]
    for i, bias in (params.logit_bias or {}).items():
        scores[i] += bias
    for i in set(output):
        scores[i] -= params.presence_penalty + params.frequency_penalty * list(output).count(i)
    for i in {*prompt, *output}:
        penalty = params.repetition_penalty
        scores[i] = scores[i] / penalty if scores[i] > 0 else scores[i] * penalty
    for i in suppressed:
        scores[i] = -INF
    scores = [score / params.temperature for score in scores]
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    if params.top_k > 0:
        order = order[: params.top_k]
    weights = {i: math.exp(scores[i] - scores[order[0]]) for i in order}
    total, before, kept = math.fsum(weights.values()), 0.0, []
    for i in order:
        if kept and params.top_p < 1 and before / total >= params.top_p:
            break
        kept.append(i)
        before += weights[i]
    kept = [i for i in kept if weights[i] >= params.min_p * weights[kept[0]]]
    total = math.fsum(weights[i] for i in kept)
    return [weights[i] / total if i in kept else 0.0 for i in range(len(scores))]


VALUES = [2.0, 1.5, 1.4, 0.3, 0.0, -0.2, -0.5, -1.0, -1.5, -2.5]
PLANS = {
    "plain": SamplingParams(),
    "hot": SamplingParams(temperature=2.5),
    "cold": SamplingParams(temperature=0.5),
    "top_k": SamplingParams(top_k=4),
    "top_p": SamplingParams(top_p=0.7),
    "min_p": SamplingParams(min_p=0.15),
    "all three": SamplingParams(temperature=1.7, top_k=7, top_p=0.9, min_p=0.1),
    "bias": SamplingParams(logit_bias={0: -1.0, 9: 3.0}),
    "presence": SamplingParams(presence_penalty=1.5),
    "frequency": SamplingParams(frequency_penalty=0.8),
    "repetition": SamplingParams(repetition_penalty=1.8),
    "everything": SamplingParams(
        temperature=1.3,
        top_k=8,
        top_p=0.95,
        min_p=0.02,
        logit_bias={4: 2.0},
        presence_penalty=0.4,
        frequency_penalty=0.3,
        repetition_penalty=1.2,
    ),
}


@pytest.mark.parametrize("name", PLANS)
def test_draws_follow_the_stated_distribution(name):
    """Chi-square over 6000 positions; seeds are fixed, and five deviations leave no room for bad luck."""
    params, count = PLANS[name], 6000
    prompt, output, suppressed = (1, 7), (0, 0, 3, 2), (5,)
    want = probabilities(VALUES, params, prompt, output, suppressed)
    values, counts = row(*VALUES), [0] * len(VALUES)
    for position in range(count):
        counts[token(values, params, prompt, output, suppressed, seed=42, position=position)] += 1
    assert all(seen == 0 for seen, p in zip(counts, want, strict=True) if p == 0)
    possible = [(seen, count * p) for seen, p in zip(counts, want, strict=True) if p > 0]
    degrees = len(possible) - 1
    statistic = sum((seen - expected) ** 2 / expected for seen, expected in possible)
    assert statistic < degrees + 5 * math.sqrt(2 * max(degrees, 1))


@pytest.mark.parametrize("name", PLANS)
def test_truncation_sees_only_what_is_allowed(name):
    """The same, with the three likeliest tokens among those that are not allowed."""
    params, count = PLANS[name], 4000
    prompt, output, allowed = (1, 7), (3, 3, 4), {3, 4, 6, 7, 8}
    want = probabilities(VALUES, params, prompt, output, (), allowed)
    counts = [0] * len(VALUES)
    for position in range(count):
        counts[token(row(*VALUES), params, prompt, output, allowed=allowed, seed=43, position=position)] += 1
    assert sum(want[i] for i in allowed) == pytest.approx(1.0)
    assert all(seen == 0 for seen, p in zip(counts, want, strict=True) if p == 0)
    possible = [(seen, count * p) for seen, p in zip(counts, want, strict=True) if p > 0]
    degrees = len(possible) - 1
    statistic = sum((seen - expected) ** 2 / expected for seen, expected in possible)
    assert statistic < degrees + 5 * math.sqrt(2 * max(degrees, 1))


def test_a_row_of_which_nothing_is_allowed_is_bad():
    with pytest.raises(BadLogits, match="forbidden"):
        token(row(1, 2, 3), allowed=set())
    with pytest.raises(BadLogits, match="forbidden"):
        token(row(1, 2, 3), SamplingParams(), allowed={1}, suppressed=frozenset({1}))


def test_choices_of_one_prompt_are_independent():
    """Pairs of tokens drawn by choices 0 and 1 at the same positions have the product distribution."""
    values, count = [1.0, 0.5, 0.0, -0.5], 6000
    p = probabilities(values, SamplingParams())
    counts = [[0] * 4 for _ in range(4)]
    for position in range(count):
        first, second = (token(row(*values), SamplingParams(), choice=c, position=position) for c in (0, 1))
        counts[first][second] += 1
    cells = [(counts[a][b], count * p[a] * p[b]) for a in range(4) for b in range(4)]
    assert sum((seen - want) ** 2 / want for seen, want in cells) < 15 + 5 * math.sqrt(30)


# ---- every parameter counts


def test_temperature_zero_takes_the_highest_and_on_a_tie_the_lowest_id():
    assert token(row(1, 3, 3, 2)) == 1
    assert token(row(1, 3, 3, 2), SamplingParams(temperature=9e-6)) == 1
    drawn = {token(row(1, 3, 3, 2), SamplingParams(), position=i) for i in range(200)}
    assert drawn == {0, 1, 2, 3}


def test_temperature_comes_before_top_p():
    """Probabilities .665 .245 .090 at T=1, .867 .117 .016 at T=.5: with top_p .8, two tokens or one."""
    values = row(3, 2, 1)
    plain = {token(values, SamplingParams(top_p=0.8), position=i) for i in range(300)}
    cooled = {token(values, SamplingParams(top_p=0.8, temperature=0.5), position=i) for i in range(300)}
    assert (plain, cooled) == ({0, 1}, {0})


@pytest.mark.parametrize(
    ("params", "left"),
    [
        (SamplingParams(top_k=2), {0, 1}),
        (SamplingParams(top_k=-1), {0, 1, 2, 3}),
        (SamplingParams(top_k=100), {0, 1, 2, 3}),
        (SamplingParams(top_p=0.65), {0, 1}),
        (SamplingParams(top_p=1e-9), {0}),
        (SamplingParams(min_p=0.4), {0, 1}),
        (SamplingParams(min_p=1.0), {0}),
    ],
)
def test_truncation(params, left):
    values = row(0.4, 0.3, 0.15, 0.15).log()
    assert {token(values, params, position=i) for i in range(300)} == left


def test_seed_choice_and_position_name_the_draw():
    values, params = torch.zeros(1000), SamplingParams()
    base = token(values, params, seed=5, choice=1, position=9)
    assert token(values, params, seed=5, choice=1, position=9) == base
    others = {"seed": 6}, {"choice": 2}, {"position": 10}
    assert all(token(values, params, **{"seed": 5, "choice": 1, "position": 9, **o}) != base for o in others)


def test_logit_bias_lifts_and_lowers():
    assert token(row(3, 2, 1), SamplingParams(temperature=0, logit_bias={2: 5})) == 2
    assert token(row(3, 2, 1), SamplingParams(temperature=0, logit_bias={0: -100, 1: -2})) == 2


def test_presence_penalty_counts_once_and_only_the_output():
    params = SamplingParams(temperature=0, presence_penalty=1.5)
    assert token(row(3, 2, 0), params, output=(0,)) == 1
    assert token(row(3, 1, 0), params, output=(0, 0, 0)) == 0
    assert token(row(3, 2, 0), params, prompt=(0,)) == 0


def test_frequency_penalty_counts_each_time_and_only_the_output():
    params = SamplingParams(temperature=0, frequency_penalty=0.6)
    assert token(row(3, 2, 0), params, output=(0,)) == 0
    assert token(row(3, 2, 0), params, output=(0, 0)) == 1
    assert token(row(3, 2, 0), params, prompt=(0, 0, 0)) == 0


def test_repetition_penalty_counts_prompt_and_output_by_sign():
    params = SamplingParams(temperature=0, repetition_penalty=2.0)
    assert token(row(3, 2, 0), params, prompt=(0,)) == 1
    assert token(row(3, 2, 0), params, output=(0,)) == 1
    assert token(row(-2, -3, -9), params, output=(0,)) == 1
    assert token(row(3, 2, 0), params, output=(0, 0, 0), prompt=(0,)) == 1
    assert token(row(4.1, 2, 0), params, output=(0, 0, 0), prompt=(0,)) == 0, "once, however often it occurs"


def test_negative_penalties_invite_repetition():
    assert token(row(3, 2, 0), SamplingParams(temperature=0, presence_penalty=-1.5), output=(1,)) == 1
    assert token(row(3, 2, 0), SamplingParams(temperature=0, frequency_penalty=-0.6), output=(1, 1)) == 1
    assert token(row(3, 2, 0), SamplingParams(temperature=0, repetition_penalty=0.5), output=(1,)) == 1


def test_suppressed_tokens_are_never_drawn():
    """How min_tokens keeps end tokens away; no bias can bring them back."""
    assert token(row(9, 1, 0), suppressed=frozenset({0})) == 1
    params = SamplingParams(logit_bias={0: 100.0})
    assert 0 not in {token(row(9, 1, 0), params, suppressed=frozenset({0}), position=i) for i in range(100)}


def test_logprobs_are_of_the_raw_logits():
    values = row(*VALUES)
    want = [v - math.log(math.fsum(math.exp(x) for x in VALUES)) for v in VALUES]
    params = SamplingParams(
        temperature=2, top_k=3, logit_bias={9: 50}, presence_penalty=1, repetition_penalty=3, logprobs=3
    )
    chosen = sample_row(values, params, 0, 0, 0, (1,), (2,))
    assert chosen.token == 9
    assert chosen.rank == 10
    # float32: values of size 4 are rounded by 2^-22 at most, a few times over.
    assert chosen.logprob == pytest.approx(want[9], abs=2**-20)
    assert [i for i, _ in chosen.top] == [0, 1, 2]
    assert [p for _, p in chosen.top] == pytest.approx(want[:3], abs=2**-20)


def test_logprobs_none_zero_and_more_than_the_vocabulary():
    values = row(*VALUES)
    assert sample_row(values, SamplingParams(logprobs=None), 0, 0, 0).top == ()
    assert sample_row(values, SamplingParams(logprobs=0), 0, 0, 0).top == ()
    assert len(sample_row(values, SamplingParams(logprobs=50), 0, 0, 0).top) == 10


def test_equal_logprobs_are_listed_by_id():
    (got,) = Using.sampling.describe(row(1, 2, 1, 2, 1)[None], [(0, 4, 4)])
    assert [i for i, _ in got.top] == [1, 3, 0, 2]
    assert got.rank == 5


def test_prompt_logprobs():
    values = logits(4, 20)
    got = prompt_logprobs(values, [3, 0, 19, 7], 2, Using.sampling)
    for given_row, choice, want_token in zip(values, got, [3, 0, 19, 7], strict=True):
        exact = given_row.double() - given_row.double().exp().sum().log()
        assert choice.token == want_token
        assert choice.logprob == pytest.approx(float(exact[want_token]), abs=2**-18)
        assert [i for i, _ in choice.top] == exact.topk(2).indices.tolist()
    with pytest.raises(ValueError, match="4 rows of logits for 1 tokens"):
        prompt_logprobs(values, [1], 0, Using.sampling)
    with pytest.raises(BadLogits):
        prompt_logprobs(torch.full((1, 3), math.nan), [1], 0, Using.sampling)


# ---- what cannot be drawn


@pytest.mark.parametrize(
    "params",
    [
        GREEDY,
        SamplingParams(),
        SamplingParams(top_p=0.5, logit_bias={1: 2.0}),
        SamplingParams(top_k=1, min_p=0.1),
        SamplingParams(top_k=2, top_p=0.5),
    ],
)
@pytest.mark.parametrize(
    ("values", "says"),
    [
        (row(1, math.nan, 2), "1 of 3 logits are NaN"),
        (row(math.nan, math.nan, math.nan), "3 of 3 logits are NaN"),
        (row(-INF, -INF, -INF), "every logit is -inf"),
        (row(1, INF, 0), r"a logit is \+inf"),
    ],
)
def test_bad_logits_are_an_error_never_a_token(params, values, says):
    with pytest.raises(BadLogits, match=says):
        token(values, params)


@pytest.mark.parametrize(
    "params", [GREEDY, SamplingParams(), SamplingParams(top_k=1), SamplingParams(min_p=0.1)]
)
def test_a_row_with_everything_forbidden_is_an_error(params):
    with pytest.raises(BadLogits, match="every token is forbidden"):
        token(row(1, 2, -INF), params, suppressed=frozenset({0, 1}))


def test_a_token_of_logit_minus_infinity_is_never_drawn():
    params = SamplingParams(temperature=100)
    assert {token(row(0, -INF, 0), params, position=i) for i in range(100)} == {0, 2}


def test_ids_past_the_vocabulary_are_refused():
    with pytest.raises(RequestError, match="logit_bias names token 10, the model's ids end at 9") as error:
        check_params(SamplingParams(logit_bias={10: 1.0}), 10)
    assert error.value.param == "logit_bias"
    with pytest.raises(RequestError, match="stop_token_ids names token 10"):
        check_params(SamplingParams(stop_token_ids=(3, 10)), 10)
    check_params(SamplingParams(logit_bias={9: 1.0}, stop_token_ids=(9,)), 10)
    with pytest.raises(RequestError):
        token(row(1, 2), SamplingParams(logit_bias={2: 1.0}))


# ---- company changes nothing


PARAMS = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.3, 1.0, 2.0]),
    top_p=st.sampled_from([1.0, 0.9, 0.3]),
    top_k=st.sampled_from([0, 1, 5, 600]),
    min_p=st.sampled_from([0.0, 0.1]),
    presence_penalty=st.sampled_from([0.0, 0.5]),
    frequency_penalty=st.sampled_from([0.0, -0.5]),
    repetition_penalty=st.sampled_from([1.0, 1.3]),
    logprobs=st.sampled_from([None, 0, 3]),
    logit_bias=st.sampled_from([None, {3: 4.0}]),
)
JOBS = st.lists(
    st.builds(
        Job,
        row=st.integers(0, 5),
        params=PARAMS,
        seed=st.integers(0, 2**64 - 1),
        choice=st.integers(0, 3),
        position=st.integers(0, 10**6),
        prompt_tokens=st.lists(st.integers(0, 1030), max_size=5),
        output_tokens=st.lists(st.integers(0, 1030), max_size=5),
        suppressed=st.frozensets(st.integers(0, 1030), max_size=3),
    ),
    min_size=1,
    max_size=10,
)


@settings(max_examples=150, deadline=None)
@given(JOBS, st.integers(0, 3), st.booleans())
def test_rows_drawn_together_equal_rows_drawn_alone_bit_for_bit(jobs, seed, has_bad_row):
    values = logits(6, 1031, seed)
    values[2] = values[2].round()  # ties
    if has_bad_row:
        values[4, 17] = math.nan
    together = sample_rows(values, jobs)
    for job, got in zip(jobs, together, strict=True):
        alone = sample_rows(values[job.row : job.row + 1].clone(), [dataclasses.replace(job, row=0)])[0]
        if has_bad_row and job.row == 4:
            assert isinstance(got, BadLogits)
            assert isinstance(alone, BadLogits)
            continue
        assert isinstance(got, Choice)
        assert got == alone
        place = (job.seed, job.choice, job.position, job.prompt_tokens, job.output_tokens, job.suppressed)
        assert got == sample_row(values[job.row].clone(), job.params, *place)


@pytest.mark.parametrize("params", [GREEDY, SamplingParams(logprobs=5), SamplingParams(top_p=0.999)])
def test_the_number_of_threads_changes_nothing(params):
    """A row as wide as real vocabularies, where reductions are split among threads."""
    values = logits(1, 151_936)[0]
    before = torch.get_num_threads()
    results = []
    try:
        for num_threads in (1, 2, 3):
            torch.set_num_threads(num_threads)
            results.append(sample_row(values, params, 1, 0, 5))
    finally:
        torch.set_num_threads(before)
    assert results[0] == results[1] == results[2]


def test_logits_are_only_read():
    values = logits(2, 50)
    before = values.clone()
    everything = PLANS["everything"]
    jobs = [
        Job(row=i, params=everything, seed=0, choice=0, position=0, output_tokens=(1,), suppressed={2})
        for i in (0, 1)
    ]
    sample_rows(values, jobs)
    assert torch.equal(values, before)
