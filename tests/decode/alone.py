"""One token alone, for tests that compare company with it or look at one row."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from torch import Tensor

from octavo.core.sequence import SamplingParams
from octavo.decode.logprobs import BadLogits, Choice
from octavo.decode.sampler import Job, sample_rows
from octavo.kernels.sampling import TORCH, Sampling


def sample_row(
    logits: Tensor,
    params: SamplingParams,
    seed: int,
    choice: int,
    position: int,
    prompt_tokens: Sequence[int] = (),
    output_tokens: Sequence[int] = (),
    suppressed: Collection[int] = frozenset(),
    allowed: Tensor | None = None,
    sampling: Sampling = TORCH,
) -> Choice:
    """A token drawn from a row [V]. Raises BadLogits."""
    job = Job(
        row=0, params=params, seed=seed, choice=choice, position=position, prompt_tokens=prompt_tokens,
        output_tokens=output_tokens, suppressed=suppressed, allowed=allowed,
    )  # fmt: skip
    (found,) = sample_rows(logits[None], [job], sampling)
    if isinstance(found, BadLogits):
        raise found
    return found
