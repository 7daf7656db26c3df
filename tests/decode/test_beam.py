"""Beam search: equal to transformers step for step, and to an exhaustive search where that is possible."""

import itertools
import math
import random

import pytest
import torch

from octavo.core.sequence import SamplingParams
from octavo.decode.beam import BeamSearch, candidates
from octavo.decode.logprobs import BadLogits
from octavo.errors import Bug


def run(search, logprobs_after):
    """Drive a search to its end; returns how many steps it took.

    logprobs_after(tokens) -> list of log-probabilities of every next token
    """
    names = itertools.count()
    live = {next(names): ()}
    num_steps = 0
    while live:
        found = {}
        for seq_id, tokens in live.items():
            ranked = sorted(enumerate(logprobs_after(tokens)), key=lambda pair: (-pair[1], pair[0]))
            found[seq_id] = [pair for pair in ranked if pair[1] > -math.inf][: search.num_candidates]
        children = search.step(found)
        num_steps += 1
        tokens_of = [(*live[parent], token) for parent, token in children]
        assert len(set(tokens_of)) == len(tokens_of), "two beams are the same"
        # The first child goes on in its parent's place, as the scheduler has it; the others are new.
        kept, seq_ids = set(), []
        for parent, _ in children:
            seq_ids.append(next(names) if parent in kept else parent)
            kept.add(parent)
        search.named(seq_ids)
        live = dict(zip(seq_ids, tokens_of, strict=True))
    assert search.is_over
    return num_steps


def table(vocab_size, seed):
    """A made-up language model: fixed random log-probabilities after every prefix."""

    def logprobs_after(tokens):
        rng = random.Random(f"{seed} {tokens}")
        scores = [rng.gauss(0, 1.5) for _ in range(vocab_size)]
        total = math.log(math.fsum(map(math.exp, scores)))
        return [score - total for score in scores]

    return logprobs_after


# ---- transformers


@pytest.fixture(scope="module")
def llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=24,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.4,
        attn_implementation="eager",
    )
    return LlamaForCausalLM(config).eval()


class Recorder:
    """Keeps the log-probabilities that `generate` saw after every sequence."""

    def __init__(self, prompt_length):
        self.rows = {}
        self.prompt_length = prompt_length

    def __call__(self, input_ids, scores):
        for ids, row in zip(input_ids.tolist(), scores, strict=True):
            self.rows.setdefault(tuple(ids[self.prompt_length :]), row.tolist())
        return scores


def by_transformers(model, prompt, beam_width, end_ids, max_new_tokens, **options):
    from transformers import LogitsProcessorList

    recorder = Recorder(len(prompt))
    found = model.generate(
        torch.tensor([prompt]),
        num_beams=beam_width,
        num_return_sequences=beam_width,
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=sorted(end_ids) or None,
        pad_token_id=min(end_ids, default=0),
        logits_processor=LogitsProcessorList([recorder]),
        return_dict_in_generate=True,
        output_scores=True,
        **options,
    )
    sequences = []
    for ids in found.sequences[:, len(prompt) :].tolist():
        end = next((i + 1 for i, token in enumerate(ids) if token in end_ids), len(ids))
        sequences.append(tuple(ids[:end]))
    return sequences, found.sequences_scores.tolist(), recorder.rows


CASES = [
    (beam_width, penalty, early, end_ids, max_new_tokens)
    for beam_width, end_ids in ((2, (5,)), (3, (5, 7)), (4, ()), (5, (1, 2, 3)), (8, (9,)))
    for penalty, early in (
        (1.0, False),
        (0.0, "never"),
        (1.0, True),
        (-0.8, False),
        (2.0, "never"),
        (-0.8, "never"),
    )
    for max_new_tokens in (1, 9)
]


@pytest.mark.parametrize(("beam_width", "penalty", "early", "end_ids", "max_new_tokens"), CASES)
def test_sequences_and_scores_equal_those_of_transformers(
    llama, beam_width, penalty, early, end_ids, max_new_tokens
):
    prompt = [11, 4, 17 + len(end_ids), beam_width]
    options = {"length_penalty": penalty, "early_stopping": early}
    want, scores, rows = by_transformers(llama, prompt, beam_width, end_ids, max_new_tokens, **options)
    search = BeamSearch(beam_width, penalty, early, max_new_tokens, frozenset(end_ids))
    num_steps = run(search, rows.__getitem__)
    assert num_steps == 1 + max(map(len, rows)), "stopped at another step"
    got = search.results(beam_width)
    assert [beam.tokens for beam in got] == want
    assert [beam.score for beam in got] == scores, "float32 sums must agree to the last bit"
    assert [beam.has_ended for beam in got] == [tokens[-1] in end_ids for tokens in want]


@pytest.mark.parametrize("seed", range(8))
def test_many_random_prompts(llama, seed):
    rng = random.Random(seed)
    prompt = [rng.randrange(24) for _ in range(rng.randint(1, 9))]
    beam_width, penalty = rng.choice([2, 3, 6]), rng.choice([0.5, 1.0, 1.4])
    end_ids = tuple(rng.sample(range(24), rng.choice([1, 2, 4])))
    want, scores, rows = by_transformers(llama, prompt, beam_width, end_ids, 10, length_penalty=penalty)
    search = BeamSearch(beam_width, penalty, False, 10, frozenset(end_ids))
    run(search, rows.__getitem__)
    got = search.results(beam_width)
    assert [(beam.tokens, beam.score) for beam in got] == list(zip(want, scores, strict=True))


def test_candidates_equal_the_processors_of_transformers():
    """Repetition penalty and forbidden end tokens act on log-probabilities, as in `generate`."""
    from transformers import MinNewTokensLengthLogitsProcessor, RepetitionPenaltyLogitsProcessor

    logits = torch.randn(40, generator=torch.Generator().manual_seed(1)) * 3
    prompt, output = [3, 4, 5], [6, 6, 30]
    ids = torch.tensor([prompt + output])
    row = logits.log_softmax(-1)[None]
    row = RepetitionPenaltyLogitsProcessor(1.7)(ids, row)
    row = MinNewTokensLengthLogitsProcessor(3, 10, [7, 8], device="cpu")(ids, row)[0]
    want = sorted(enumerate(row.tolist()), key=lambda pair: (-pair[1], pair[0]))[:12]
    params = SamplingParams(beam_width=3, repetition_penalty=1.7)
    assert candidates(logits, 12, params, prompt, output, frozenset({7, 8})) == tuple(want)


def test_candidates_leave_out_the_impossible_and_refuse_the_broken():
    params = SamplingParams(beam_width=2)
    got = candidates(torch.tensor([0.0, -math.inf, 0.0]), 4, params)
    assert [token for token, _ in got] == [0, 2]
    assert [p for _, p in got] == pytest.approx([-math.log(2)] * 2)
    assert len(candidates(torch.zeros(3), 4, params, suppressed=frozenset({0, 2}))) == 1
    with pytest.raises(BadLogits):
        candidates(torch.tensor([0.0, math.nan]), 4, params)


# ---- exhaustive search


def every_ending(logprobs_after, vocab_size, end_id, max_new_tokens, penalty):
    """All sequences that end, or are as long as allowed, with their scores in float64, best first."""
    found, open_ = [], [((), 0.0)]
    for length in range(1, max_new_tokens + 1):
        grown = []
        for tokens, total in open_:
            for token, logprob in zip(range(vocab_size), logprobs_after(tokens), strict=True):
                child = ((*tokens, token), total + logprob)
                done = token == end_id or length == max_new_tokens
                (found if done else grown).append(child)
        open_ = grown
    return sorted(((t, s / len(t) ** penalty) for t, s in found), key=lambda pair: -pair[1])


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("penalty", [0.0, 1.0, -0.5, 1.5])
def test_beams_wide_enough_find_the_best_of_all(seed, penalty):
    vocab_size, length = 4, 4
    logprobs_after = table(vocab_size, seed)
    search = BeamSearch(vocab_size ** (length - 1), penalty, "never", length, frozenset({2}))
    run(search, logprobs_after)
    want = every_ending(logprobs_after, vocab_size, 2, length, penalty)[:10]
    got = search.results(10)
    assert [beam.tokens for beam in got] == [tokens for tokens, _ in want]
    # Four float32 additions of numbers below 16, each rounded by at most 2^-21, and one division.
    assert [beam.score for beam in got] == pytest.approx(
        [score for _, score in want], abs=5 * 2**-20 * 4**0.5
    )


# ---- the parameters, one by one


def two_paths(tokens):
    """After 0 comes certainty; 1 is likelier at first and then splits; 2 ends. Token 3 is unlikely."""
    rows = {
        (): [0.35, 0.55, 0.05, 0.05],
        (0,): [0.01, 0.01, 0.97, 0.01],
        (1,): [0.3, 0.25, 0.2, 0.25],
    }
    row = rows.get(tokens[:1] if len(tokens) == 1 else tokens, [0.25, 0.25, 0.25, 0.25])
    return [math.log(p) for p in row]


def best(**options):
    plan = {"beam_width": 2, "length_penalty": 1.0, "early_stopping": False, "max_new_tokens": 2, **options}
    search = BeamSearch(**plan, end_ids=frozenset({2}))
    run(search, two_paths)
    return search.results(1)[0].tokens


def test_a_wider_beam_finds_what_greed_misses():
    assert best(beam_width=1) == (1, 0)
    assert best(beam_width=2) == (0, 2)


def test_the_length_penalty_prefers_long_or_short():
    def logprobs_after(tokens):
        return [math.log(p) for p in ((0.5, 0.1, 0.4) if len(tokens) == 0 else (0.6, 0.2, 0.2))]

    def found(penalty):
        search = BeamSearch(3, penalty, "never", 4, frozenset({2}))
        run(search, logprobs_after)
        return search.results(1)[0].tokens

    assert found(0.0) == (2,)
    assert found(3.0) == (0, 0, 0, 0)


def test_early_stopping_ends_with_the_first_full_pool():
    def logprobs_after(tokens):
        return [math.log(p) for p in ((0.5, 0.25, 0.25) if len(tokens) < 1 else (0.9, 0.05, 0.05))]

    def steps(early):
        search = BeamSearch(2, 2.0, early, 12, frozenset({1, 2}))
        return run(search, logprobs_after)

    assert steps(True) < steps(False) <= steps("never") == 12


def test_max_new_tokens_cuts_beams_that_have_not_ended():
    search = BeamSearch(2, 1.0, False, 3, frozenset())
    assert run(search, table(5, 0)) == 3
    assert [len(beam.tokens) for beam in search.results(2)] == [3, 3]
    assert not any(beam.has_ended for beam in search.results(2))


def test_results_before_the_end_show_the_live_beams():
    search = BeamSearch(2, 1.0, False, 5, frozenset())
    assert search.results(2) == []
    children = search.step({7: [(0, -1.0), (1, -2.0), (2, -3.0), (3, -4.0)]})
    assert children == [(7, 0), (7, 1)]
    search.named([7, 8])
    assert [(beam.tokens, beam.sum_logprob) for beam in search.results(5)] == [((0,), -1.0), ((1,), -2.0)]


def test_ties_go_to_the_earlier_beam_and_the_lower_token():
    search = BeamSearch(2, 1.0, False, 5, frozenset())
    assert search.step({0: [(3, -1.0), (1, -1.0), (2, -1.0)]}) == [(0, 1), (0, 2)]
    search.named([0, 1])
    assert search.step({1: [(0, -1.0)], 0: [(9, -1.0)]}) == [(0, 9), (1, 0)]


def test_a_search_whose_every_candidate_ends_is_over():
    search = BeamSearch(2, 1.0, False, 5, frozenset({0, 1}))
    assert search.step({0: [(0, -1.0), (1, -2.0)]}) == []
    assert search.is_over
    assert [beam.tokens for beam in search.results(2)] == [(0,), (1,)]


def test_enough_candidates_are_kept_for_beams_to_live_on():
    """Where end tokens are the likeliest everywhere, 2 * B candidates would leave no beam alive."""
    row = [(token, math.log(p)) for token, p in enumerate((0.3, 0.25, 0.25, 0.12, 0.08))]
    search = BeamSearch(2, 3.0, "never", 3, frozenset({0, 1, 2}))
    assert search.num_candidates == 8
    assert search.step({0: row}) == [(0, 3), (0, 4)]
    search.named([0, 1])
    assert search.step({0: row, 1: row}) == [(0, 3), (0, 4)]


def test_misuse_is_a_bug():
    search = BeamSearch(2, 1.0, False, 1, frozenset())
    with pytest.raises(Bug, match="live beams are the sequences"):
        BeamSearch(2, 1.0, False, 1, frozenset()).step({0: [], 1: []})
    search.step({0: [(0, -1.0), (1, -2.0)]})
    with pytest.raises(Bug, match="over"):
        search.step({0: [(0, -1.0)]})
    search = BeamSearch(2, 1.0, False, 3, frozenset())
    search.step({0: [(0, -1.0), (1, -2.0)]})
    with pytest.raises(Bug, match="candidates came for"):
        search.step({0: [(0, -1.0)]})
    with pytest.raises(Bug, match="were given the sequence ids"):
        search.named([4, 4])
