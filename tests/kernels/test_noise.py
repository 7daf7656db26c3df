"""The noise: known answers, and statistics that a fixed seed makes repeatable."""

import math

import pytest
import torch

from octavo.kernels.sampling.noise import gumbel, random_bits, stream_key, uniform

MASK = 2**64 - 1


def splitmix64(state, count):
    """The published generator, in Python's whole numbers: its first `count` outputs."""
    outputs = []
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) & MASK
        z = state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        outputs.append(z ^ (z >> 31))
    return outputs


def unsigned(bits):
    return [x & MASK for x in bits.tolist()]


def chi_square(counts, expected):
    return sum((count - want) ** 2 / want for count, want in zip(counts, expected, strict=True))


def limit(degrees):
    """Five standard deviations above the mean of chi-square; a sound draw exceeds it less than once in 10^5."""
    return degrees + 5 * math.sqrt(2 * degrees)


def test_the_published_vector():
    """SplitMix64 of seed 1234567, as listed with the reference implementations of the xoshiro family."""
    want = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert splitmix64(1234567, 5) == want
    assert unsigned(random_bits(1234567, torch.arange(5))) == want


@pytest.mark.parametrize("key", [0, 1, 2**63 - 1, 2**63, 2**64 - 1, 0x123456789ABCDEF0])
def test_bits_equal_whole_number_arithmetic(key):
    assert unsigned(random_bits(key, torch.arange(1000))) == splitmix64(key, 1000)


def test_bits_belong_to_the_token_not_to_its_place():
    ids = torch.tensor([999_999, 5, 0, 5])
    whole = random_bits(77, torch.arange(1_000_000))
    assert torch.equal(random_bits(77, ids), whole[ids])


def test_keys_differ_in_every_part():
    near = [stream_key(s, c, p) for s in range(-3, 4) for c in range(6) for p in range(50)]
    assert len(set(near)) == len(near)
    assert stream_key(2**64 + 5, 0, 0) == stream_key(5, 0, 0)
    assert (
        stream_key(1, 2, 3)
        == splitmix64((splitmix64((splitmix64(1, 1)[0] + 2) & MASK, 1)[0] + 3) & MASK, 1)[0]
    )


@pytest.mark.parametrize("key", [0, 5, 2**64 - 1])
def test_uniform_and_noise_equal_their_formulas(key):
    parts = [bits >> 12 for bits in splitmix64(key, 300)]
    want = [(2 * part + 1) * 2.0**-53 for part in parts]
    assert uniform(key, torch.arange(300)).tolist() == want
    noise = [-math.log(-math.log(u)) for u in want]
    assert gumbel(key, torch.arange(300)).tolist() == pytest.approx(noise, rel=1e-12, abs=1e-12)


def test_uniform_never_touches_its_ends():
    """The largest and smallest 52-bit parts still give a finite noise."""
    smallest, largest = 0.5 * 2.0**-52, 1 - 0.5 * 2.0**-52
    assert smallest > 0.0
    assert largest < 1.0
    bounds = [-math.log(-math.log(u)) for u in (smallest, largest)]
    drawn = gumbel(3, torch.arange(200_000))
    assert bounds[0] < drawn.min() < drawn.max() < bounds[1]
    assert bounds == pytest.approx([-3.604, 36.737], abs=0.001)


@pytest.mark.parametrize("along", ["tokens", "positions", "choices", "seeds"])
def test_uniform_is_uniform_along_every_axis(along):
    count, bins = 20_000, 64
    one = torch.tensor([17])
    draws = {
        "tokens": lambda: uniform(stream_key(0, 0, 0), torch.arange(count)),
        "positions": lambda: torch.cat([uniform(stream_key(0, 0, i), one) for i in range(count)]),
        "choices": lambda: torch.cat([uniform(stream_key(0, i, 0), one) for i in range(count)]),
        "seeds": lambda: torch.cat([uniform(stream_key(i, 0, 0), one) for i in range(count)]),
    }[along]()
    counts = torch.histc(draws, bins, 0.0, 1.0).tolist()
    assert chi_square(counts, [count / bins] * bins) < limit(bins - 1)


@pytest.mark.parametrize("step", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, 2**20), (2**32, 0, 0)])
def test_neighbouring_keys_share_nothing(step):
    """Pairs of draws of the same token under neighbouring keys fill the square evenly."""
    count, side = 40_000, 8
    ids = torch.arange(count)
    first = (uniform(stream_key(5, 1, 9), ids) * side).long()
    second = (uniform(stream_key(5 + step[0], 1 + step[1], 9 + step[2]), ids) * side).long()
    counts = torch.bincount(first * side + second, minlength=side * side).tolist()
    assert chi_square(counts, [count / side**2] * side**2) < limit(side**2 - 1)


def test_neighbouring_tokens_share_nothing():
    count, side = 40_000, 8
    cells = (uniform(stream_key(1, 0, 0), torch.arange(count + 1)) * side).long()
    counts = torch.bincount(cells[:-1] * side + cells[1:], minlength=side * side).tolist()
    assert chi_square(counts, [count / side**2] * side**2) < limit(side**2 - 1)


def test_every_bit_is_a_fair_coin():
    bits = random_bits(stream_key(11, 0, 0), torch.arange(20_000))
    for bit in range(64):
        ones = int(((bits >> bit) & 1).sum())
        assert abs(ones - 10_000) < 5 * math.sqrt(20_000 / 4)


def test_noise_has_the_mean_and_variance_of_gumbel():
    count = 200_000
    drawn = gumbel(stream_key(2, 0, 0), torch.arange(count))
    variance = math.pi**2 / 6
    assert abs(float(drawn.mean()) - 0.5772156649) < 5 * math.sqrt(variance / count)
    # Variance of the sample variance: (fourth central moment - variance^2) / count; Gumbel's excess kurtosis is 2.4.
    assert abs(float(drawn.var()) - variance) < 5 * math.sqrt((2.4 + 2) * variance**2 / count)
