"""The same draws on an accelerator as on the processor."""

import pytest
import torch

from octavo.core.sequence import SamplingParams
from octavo.decode.sampler import Job, sample_rows
from octavo.kernels.sampling.noise import gumbel, random_bits, uniform

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")


def test_noise_is_the_same_on_every_device():
    ids = torch.arange(150_000)
    assert torch.equal(random_bits(99, ids.cuda()).cpu(), random_bits(99, ids))
    assert torch.equal(uniform(99, ids.cuda()).cpu(), uniform(99, ids))
    # Two float64 logarithms, each good to two units in the last place, on values up to 37.
    torch.testing.assert_close(gumbel(99, ids.cuda()).cpu(), gumbel(99, ids), rtol=0, atol=8 * 37 * 2**-52)


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=0.0, logprobs=3),
        SamplingParams(),
        SamplingParams(temperature=0.8, top_k=40, top_p=0.95, min_p=0.01),
        SamplingParams(top_p=0.9, presence_penalty=0.5, repetition_penalty=1.1, logit_bias={7: 2.0}),
    ],
)
def test_tokens_are_the_same_on_every_device(params):
    logits = torch.randn(8, 32_000, generator=torch.Generator().manual_seed(4)) * 3
    jobs = [
        Job(row=i, params=params, seed=5, choice=i, position=i, output_tokens=(1, 2, i)) for i in range(8)
    ]
    here, there = sample_rows(logits, jobs), sample_rows(logits.cuda(), jobs)
    assert [choice.token for choice in here] == [choice.token for choice in there]
