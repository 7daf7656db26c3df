"""A tokenizer and batches small enough to build in a second."""

import pytest

from lab import corpus, export, tokenizer
from lab.batches import Batches


@pytest.fixture(scope="session")
def few_sources():
    return corpus.split()[0][:12]


@pytest.fixture(scope="session")
def small_tokenizer(few_sources):
    return tokenizer.train(export.tokenizer_texts(few_sources, seed=1))


@pytest.fixture(scope="session")
def batches(small_tokenizer, few_sources):
    return Batches(small_tokenizer, few_sources, seed=1)
