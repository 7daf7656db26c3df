"""The small family: sizes as named, text without repeats, and a sweep that goes on where it was stopped."""

import csv
import itertools

import numpy as np
import pytest
import torch

from lab.model import Llama
from lab.scaling import __main__ as scaling
from lab.scaling import train
from lab.scaling.family import FAMILY, ROWS, TOKENS, WINDOW_TOKENS, matrix_parameters, training_flop_per_token
from lab.scaling.windows import Windows, held_out_batches

VOCAB = 4096


@pytest.mark.parametrize("member", FAMILY, ids=lambda member: member.name)
def test_members_are_as_large_as_their_names_say(member):
    model = Llama(member.shape(VOCAB), torch.float32, 1)
    counted = sum(w.numel() for n, w in model.named_parameters() if w.ndim == 2 and "embed" not in n)
    assert counted == matrix_parameters(member.shape(VOCAB))
    assert counted == pytest.approx(float(member.name.removesuffix("M")) * 1e6, rel=0.12)


@pytest.mark.parametrize("member", FAMILY, ids=lambda member: member.name)
def test_flop_of_a_token(member):
    """Products against torch's own counter over one forward pass; pairs of the causal mask one by one."""
    from torch.utils.flop_counter import FlopCounterMode

    shape = member.shape(VOCAB)
    model = Llama(shape, torch.float32, 1)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.logits(model.hidden(torch.zeros((1, WINDOW_TOKENS), dtype=torch.int64)))
    counts = counter.get_flop_counts()["Global"]
    products = sum(flop for op, flop in counts.items() if str(op) in ("aten.mm", "aten.addmm", "aten.bmm"))
    pairs = sum(query + 1 for query in range(WINDOW_TOKENS))
    expected = 3 * (products + 4 * shape.layers * shape.hidden * pairs)
    assert training_flop_per_token(shape) * WINDOW_TOKENS == pytest.approx(expected, rel=1e-12)


def test_a_pass_reads_every_piece_once():
    windows = Windows(np.arange(20 * WINDOW_TOKENS + 7), seed=3)
    read = []
    for step in range(windows.per_pass):
        batch = windows.batch(step, 1)
        assert batch.tokens.shape == (1, WINDOW_TOKENS + 1)
        assert batch.weights[0].tolist() == [0.0] + [1.0] * WINDOW_TOKENS
        read += batch.tokens[0, 1:].tolist()
    assert len(read) == len(set(read))
    assert windows.starts(0) != windows.starts(1)
    assert Windows(windows.flat, seed=3).starts(1) == windows.starts(1)
    assert Windows(windows.flat, seed=4).starts(1) != windows.starts(1)


def test_held_out_text_is_read_whole_and_once():
    batches = held_out_batches(np.arange(10 * WINDOW_TOKENS + 1), rows=4)
    assert [len(batch.tokens) for batch in batches] == [4, 4, 2]
    predicted = list(itertools.chain.from_iterable(batch.tokens[:, 1:].reshape(-1) for batch in batches))
    assert predicted == list(range(1, 10 * WINDOW_TOKENS + 1))


def test_branches_leave_the_trunk_before_their_end():
    for count in TOKENS:
        steps = train.total_steps(count)
        assert steps * ROWS * WINDOW_TOKENS == pytest.approx(count, rel=0.005)
        assert 0.65 * steps < train.branch_step(steps) < 0.75 * steps


def rows_of(folder):
    with (folder / "runs.csv").open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    for row in rows:
        del row["wall_s"]
    return rows


def test_a_stopped_sweep_goes_on_to_the_same_losses(tmp_path, monkeypatch, few_sources, small_tokenizer):
    monkeypatch.setattr(scaling.corpus, "split", lambda: (few_sources, few_sources[:1]))
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
        small_tokenizer.save(str(tmp_path / name / "tokenizer.json"))
    flags = ["--members", "0.1M", "--threads", "1", "--max-files", "10"]
    scaling.main([str(tmp_path / "whole"), *flags, "--tokens", "20000", "40000"])
    scaling.main([str(tmp_path / "parts"), *flags, "--tokens", "20000"])
    scaling.main([str(tmp_path / "parts"), *flags, "--tokens", "20000", "40000"])
    whole, parts = rows_of(tmp_path / "whole"), rows_of(tmp_path / "parts")
    assert [int(row["steps"]) for row in whole] == [5, 10]
    assert whole == parts
    assert float(whole[1]["loss"]) < float(whole[0]["loss"]) < np.log(VOCAB)
    with pytest.raises(ValueError, match="past the branch of 12000 tokens"):
        scaling.main([str(tmp_path / "parts"), *flags, "--tokens", "12000"])
