"""The training model equals transformers' Llama, and the guide's loss is what it says."""

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lab import guide
from lab.batches import Batch
from lab.export import weights_of
from lab.model import Llama, Shape
from lab.train import PHASES, Recipe, loss_of, lr_scale, phase_at

SMALL = Shape(vocab=96, hidden=32, ffn=48, layers=5, query_heads=4, kv_heads=2, head_width=8, max_tokens=64)
SINGLE_ROUNDING = 2.0**-24


@pytest.fixture(scope="module")
def model():
    return Llama(SMALL, torch.float32, seed=3)


def tokens_of(seed, rows=3, width=29):
    return torch.randint(1, SMALL.vocab, (rows, width), generator=torch.Generator().manual_seed(seed))


def test_logits_equal_transformers(model):
    """The same weights in transformers' own model: equal up to float32 sums in another order."""
    peer = LlamaForCausalLM(LlamaConfig(**SMALL.config())).float().eval()
    missing, unexpected = peer.load_state_dict(model.state_dict(), strict=False)
    assert missing == ["lm_head.weight"] or not missing
    assert not unexpected
    peer.tie_weights()
    tokens = tokens_of(1)
    with torch.no_grad():
        want = peer(tokens).logits
        got = model.logits(model.hidden(tokens))
    # each layer sums over at most ffn terms, twice; errors of layers add up
    assert (got - want).norm() / want.norm() < SMALL.layers * 2 * SMALL.ffn * SINGLE_ROUNDING


def test_loss_is_the_weighted_mean(model):
    tokens = tokens_of(2)
    weights = torch.rand(tokens.shape, generator=torch.Generator().manual_seed(2)) * (tokens % 3 > 0)
    loss, right, guided = loss_of(model, Batch("recall", tokens.numpy(), weights.numpy()))
    with torch.no_grad():
        scores = model.logits(model.hidden(tokens)).double().log_softmax(-1)
    total, mass, hits, heavy = 0.0, 0.0, 0, 0
    for n in range(tokens.shape[0]):
        for t in range(1, tokens.shape[1]):
            weight = weights[n, t].item()
            total -= weight * scores[n, t - 1, tokens[n, t]].item()
            mass += weight
            if weight >= 0.5:
                heavy += 1
                hits += int(scores[n, t - 1].argmax() == tokens[n, t])
    assert loss.item() == pytest.approx(total / mass, rel=tokens.numel() * 2 * SINGLE_ROUNDING)
    assert right == pytest.approx(hits / heavy)
    assert guided == 0.0


def test_guide_loss_is_the_cross_entropy_of_attention(model):
    tokens = tokens_of(4)
    tokens[:, 15:25] = tokens[:, 2:12]
    tokens[1, 26:] = 0
    weights = np.ones(tokens.shape, dtype=np.float32)
    found = guide.places(tokens.numpy(), weights)
    assert (found != guide.NOWHERE).sum() >= 3 * 8
    watched = []
    with torch.no_grad():
        model.hidden(tokens, watched)
        got = guide.guide_loss(watched, torch.from_numpy(found), tokens != 0).item()
    means = []
    for layer, head, back in [*guide.PREVIOUS_HEADS, *((a, b, None) for a, b in guide.RETRIEVAL_HEADS)]:
        q, k = (part[:, head].double().numpy() for part in watched[layer])
        losses = []
        for n in range(3):
            for t in range(tokens.shape[1]):
                goal = found[n, t] if back is None else max(t - back, 0)
                if goal < 0 or (back is not None and tokens[n, t] == 0):
                    continue
                scores = k[n, : t + 1] @ q[n, t] / SMALL.head_width**0.5
                losses.append(np.logaddexp.reduce(scores) - scores[goal])
        means.append(np.mean(losses))
    assert got == pytest.approx(np.mean(means), rel=1000 * SINGLE_ROUNDING)


def test_rounded_weights_keep_names_and_values(model):
    rounded = weights_of(model)
    assert set(rounded) == set(LlamaForCausalLM(LlamaConfig(**SMALL.config())).state_dict()) - {
        "lm_head.weight"
    }
    for name, weight in model.named_parameters():
        assert rounded[name].dtype is torch.bfloat16
        assert torch.equal(rounded[name], weight.detach().bfloat16())


def test_learning_rates_rise_stay_and_end_at_zero():
    recipe = Recipe()
    assert lr_scale(recipe, 0.0) < 0.1
    assert lr_scale(recipe, recipe.warmup) == lr_scale(recipe, recipe.decay_from) == 1.0
    assert lr_scale(recipe, 1.0) == 0.0
    falling = [lr_scale(recipe, step / 100) for step in range(int(100 * recipe.decay_from), 101)]
    assert falling == sorted(falling, reverse=True)


def test_phases_cover_the_run_in_order():
    borders = [phase.until for phase in PHASES]
    assert borders == sorted(set(borders))
    assert borders[-1] == 1.0
    assert phase_at(0.0) is PHASES[0]
    assert phase_at(borders[0]) is PHASES[1]
    assert phase_at(1.0) is PHASES[-1]
