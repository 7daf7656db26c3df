"""Checkpoints for the engine's tests, written once per run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.engine.tiny import write_checkpoint


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of two layers in float32 with a tokenizer and a chat template."""
    return write_checkpoint(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same shape in bfloat16, embeddings tied."""
    folder = tmp_path_factory.mktemp("models") / "half"
    return write_checkpoint(folder, seed=1, torch_dtype="bfloat16", tie_word_embeddings=True)


@pytest.fixture(scope="session")
def sliding(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Mistral whose every layer sees the last 20 positions only, so that blocks are freed on the way."""
    folder = tmp_path_factory.mktemp("models") / "sliding"
    return write_checkpoint(
        folder, seed=2, architectures=["MistralForCausalLM"], model_type="mistral", sliding_window=20
    )


@pytest.fixture(scope="session")
def patient(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a long window, for requests that do not end by themselves while a test runs."""
    return write_checkpoint(tmp_path_factory.mktemp("models") / "patient", max_position_embeddings=16384)
