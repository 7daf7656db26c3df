"""The runner against a plain model: scattered blocks, chunks, company, copies, and what one sequence may spoil."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from octavo.core.sequence import SamplingParams
from octavo.core.step import Copy, Output, Slice, Step
from octavo.decode.logprobs import Choice
from octavo.exec.executor import Start
from octavo.exec.runner import Payload, Runner
from octavo.kv.pool import KvPool
from octavo.models.loader import load
from octavo.models.model import Model
from tests.engine.tiny import CONFIG, weights, write_checkpoint
from tests.exec import plain

P, NUM_BLOCKS = 4, 64
SLIDING = CONFIG | {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": 7}
GREEDY = SamplingParams(temperature=0.0, logprobs=5, max_tokens=None)
PROMPT = [(i * i * 7 + i * 3) % 290 for i in range(23)]


@pytest.fixture(scope="module", params=[CONFIG, SLIDING], ids=["full", "sliding"])
def config(request: pytest.FixtureRequest) -> dict[str, Any]:
    return dict(request.param)


@pytest.fixture(scope="module")
def model(config: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Model:
    torch.set_num_threads(1)
    folder = write_checkpoint(tmp_path_factory.mktemp("m"), with_tokenizer=False, **config)
    return load(folder, dtype=torch.float32)


@dataclass
class Desk:
    """Hands steps to a runner, with blocks in a random order from a pool full of NaN."""

    model: Model
    seed: int = 0
    number: int = 0
    tables: dict[int, list[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.kv = KvPool(self.model.kv_layout(P), self.model.arch.num_layers, NUM_BLOCKS)
        self.kv.poison(range(NUM_BLOCKS))
        self.runner = Runner(self.model, self.kv)
        self.free = list(range(1, NUM_BLOCKS))
        random.Random(self.seed).shuffle(self.free)

    def start(
        self, seq_id: int, tokens: Sequence[int], params: SamplingParams = GREEDY, **more: Any
    ) -> Start:
        self.tables[seq_id] = []
        values: dict[str, Any] = {"num_prompt": len(tokens), "index": 0, "seed": 1, "epoch": 0} | more
        ends = values.pop("end_token_ids", frozenset())
        return Start(seq_id=seq_id, tokens=tuple(tokens), params=params, end_token_ids=ends, **values)

    def slice(self, seq_id: int, start: int, count: int, samples: int = 0, epoch: int = 0) -> Slice:
        table = self.tables[seq_id]
        fresh = [self.free.pop() for _ in range(-(-(start + count) // P) - len(table))]
        table.extend(fresh)
        return Slice(seq_id, epoch, start, count, tuple(fresh), samples=samples)

    def run(self, *slices: Slice, starts: Sequence[Start] = (), **more: Any) -> tuple[Output, ...]:
        ordered = {name: more.pop(name) for name in ("appended", "ended") if name in more}
        step = Step(self.number, tuple(slices), **more)
        self.number += 1
        result = self.runner.run(step, starts, **ordered)
        assert result.number == step.number
        assert [output.seq_id for output in result.outputs] == [piece.seq_id for piece in slices]
        return result.outputs

    def alone(
        self, seq_id: int, prompt: list[int], num_tokens: int, params: SamplingParams = GREEDY
    ) -> list[Choice]:
        """Prompt in one piece, then token by token."""
        start = self.start(seq_id, prompt, params)
        (output,) = self.run(self.slice(seq_id, 0, len(prompt), samples=1), starts=[start])
        found = [*choices(output)]
        for position in range(len(prompt), len(prompt) + num_tokens - 1):
            (output,) = self.run(self.slice(seq_id, position, 1, samples=1))
            found += choices(output)
        return found


def choices(output: Output) -> tuple[Choice, ...]:
    assert output.error is None
    assert isinstance(output.payload, Payload)
    assert output.tokens == tuple(choice.token for choice in output.payload.choices)
    return output.payload.choices


def test_greedy_equals_the_plain_model(model: Model, config: dict[str, Any]) -> None:
    found = Desk(model).alone(1, PROMPT, 12)
    known = list(PROMPT)
    for choice in found:
        logits = plain.logits(config, weights(config), known)
        expected = logits[-1].log_softmax(-1)
        allowed = plain.budget(config, len(known), float(logits.abs().max()))
        assert choice.token == int(expected.argmax())
        assert choice.rank == 1
        for token, logprob in ((choice.token, choice.logprob), *choice.top):
            assert abs(logprob - float(expected[token])) <= 2 * allowed
        known.append(choice.token)
    assert len({choice.token for choice in found}) > 4


@pytest.mark.parametrize("seed", range(12))
def test_company_chunks_and_places_change_no_bit(model: Model, seed: int) -> None:
    """Three sequences in random chunks, in random order, in random blocks; each as if it were alone."""
    prompts = {seq_id: [(token * seq_id) % 290 for token in PROMPT[: 5 * seq_id + 1]] for seq_id in (1, 2, 4)}
    params = {
        1: GREEDY,
        2: SamplingParams(temperature=0.9, top_p=0.9, logprobs=2, max_tokens=None),
        4: SamplingParams(
            temperature=0.0, repetition_penalty=1.5, presence_penalty=0.5, logprobs=0, max_tokens=None
        ),
    }
    expected = {seq_id: Desk(model).alone(seq_id, prompts[seq_id], 6, params[seq_id]) for seq_id in prompts}
    desk, rng = Desk(model, seed=seed), random.Random(seed)
    known = {seq_id: list(prompt) for seq_id, prompt in prompts.items()}
    done = dict.fromkeys(prompts, 0)
    found: dict[int, list[Choice]] = {seq_id: [] for seq_id in prompts}
    started: set[int] = set()
    while any(len(found[seq_id]) < 6 for seq_id in prompts):
        chosen = [seq_id for seq_id in prompts if len(found[seq_id]) < 6 and rng.random() < 0.6]
        slices, starts = [], []
        for seq_id in rng.sample(chosen, len(chosen)):
            count = rng.randint(1, len(known[seq_id]) - done[seq_id])
            if seq_id not in started:
                starts.append(desk.start(seq_id, known[seq_id], params[seq_id]))
                started.add(seq_id)
            is_last = done[seq_id] + count == len(known[seq_id])
            slices.append(desk.slice(seq_id, done[seq_id], count, samples=int(is_last)))
            done[seq_id] += count
        if not slices:
            continue
        for output in desk.run(*slices, starts=starts):
            if output.tokens:
                found[output.seq_id] += choices(output)
                known[output.seq_id] += output.tokens
    assert found == expected


def test_choices_of_one_prompt_are_drawn_side_by_side(model: Model) -> None:
    """Sample i of a slice equals the draw of a sequence with index i."""
    params = SamplingParams(temperature=1.0, logprobs=1, n=3)
    desk = Desk(model)
    start = desk.start(1, PROMPT, params)
    (output,) = desk.run(desk.slice(1, 0, len(PROMPT), samples=3), starts=[start])
    together = choices(output)
    for index in range(3):
        desk = Desk(model)
        start = desk.start(1, PROMPT, params, index=index)
        (output,) = desk.run(desk.slice(1, 0, len(PROMPT), samples=1), starts=[start])
        assert choices(output) == together[index : index + 1]
    assert len({choice.token for choice in together}) > 1


def test_a_fork_copies_the_shared_tail_and_goes_its_own_way(model: Model) -> None:
    """Child and parent share full blocks; the child's copy of the last one is made before either writes."""
    desk = Desk(model)
    start = desk.start(1, PROMPT)
    (output,) = desk.run(desk.slice(1, 0, len(PROMPT), samples=1), starts=[start])
    first = output.tokens[0]
    target = desk.free.pop()
    child_table = [*desk.tables[1][:-1], target]
    other = (first + 1) % 290
    child = desk.start(2, [*PROMPT, other], num_prompt=len(PROMPT), index=1)
    desk.tables[2] = []
    own = desk.slice(1, len(PROMPT), 1, samples=1)
    desk.tables[2] = child_table
    forked = Slice(2, 0, len(PROMPT), 1, tuple(child_table), samples=1)
    copy = Copy(desk.tables[1][-1] if len(PROMPT) % P else target, target, len(PROMPT) % P)
    outputs = desk.run(own, forked, starts=[child], copies=(copy,))
    alone = Desk(model).alone(3, [*PROMPT, first], 1)
    alone_child = Desk(model).alone(3, [*PROMPT, other], 1)
    assert [choices(output)[0] for output in outputs] == [*alone, *alone_child]


def test_a_replaced_block_is_read_from_its_copy(model: Model) -> None:
    desk = Desk(model)
    start = desk.start(1, PROMPT)
    desk.run(desk.slice(1, 0, len(PROMPT) - 1), starts=[start])
    index, old = len(desk.tables[1]) - 1, desk.tables[1][-1]
    new = desk.free.pop()
    desk.tables[1][-1] = new
    piece = Slice(1, 0, len(PROMPT) - 1, 1, samples=1, replaced=((index, new),))
    copy = Copy(old, new, (len(PROMPT) - 1) % P)
    (output,) = desk.run(piece, copies=(copy,))
    assert list(choices(output)) == Desk(model).alone(1, PROMPT, 1)


def test_a_preempted_sequence_is_forgotten_and_told_anew(model: Model) -> None:
    desk = Desk(model)
    expected = Desk(model).alone(1, PROMPT, 4)
    found = desk.alone(1, PROMPT, 2)
    assert desk.run(preempted=(1,)) == ()
    assert 1 not in desk.runner._held
    known = [*PROMPT, *(choice.token for choice in found)]
    start = desk.start(1, known, num_prompt=len(PROMPT), epoch=1)
    (output,) = desk.run(desk.slice(1, 0, len(known), samples=1, epoch=1), starts=[start])
    assert output.epoch == 1
    found += choices(output)
    (output,) = desk.run(desk.slice(1, len(known), 1, samples=1, epoch=1))
    assert [*found, *choices(output)] == expected


def test_ended_sequences_are_forgotten(model: Model) -> None:
    desk = Desk(model)
    desk.alone(1, PROMPT, 1)
    desk.alone(2, PROMPT, 1)
    desk.run(ended=(1,))
    assert set(desk.runner._held) == {2}


def test_nan_ends_its_own_sequence_only(model: Model) -> None:
    """One sequence reads a block of NaN; its neighbours' bits stay."""
    desk = Desk(model)
    expected = desk.alone(1, PROMPT, 1)
    desk = Desk(model)
    starts = [desk.start(1, PROMPT), desk.start(2, PROMPT[:9])]
    good, bad = desk.slice(1, 0, len(PROMPT), samples=1), desk.slice(2, 0, 8)
    desk.run(bad, starts=starts[1:])
    desk.kv.poison(desk.tables[2][1:])
    outputs = desk.run(desk.slice(2, 8, 1, samples=1), good, starts=starts[:1])
    assert outputs[0].tokens == ()
    assert "NaN" in (outputs[0].error or "")
    assert list(choices(outputs[1])) == expected


def test_prompt_logprobs_in_any_chunks(model: Model, config: dict[str, Any]) -> None:
    params = SamplingParams(temperature=0.0, prompt_logprobs=2, max_tokens=None)
    found = []
    for cuts in ([23], [1, 22], [5, 5, 5, 8], [22, 1]):
        desk = Desk(model)
        starts = [desk.start(1, PROMPT, params)]
        pairs: dict[int, Choice] = {}
        position = 0
        for count in cuts:
            (output,) = desk.run(
                desk.slice(1, position, count, samples=int(position + count == 23)), starts=starts
            )
            assert isinstance(output.payload, Payload)
            pairs |= dict(output.payload.prompt)
            position, starts = position + count, []
        found.append(pairs)
    assert found[1:] == found[:-1]
    expected = plain.logprobs(config, weights(config), PROMPT)
    largest = float(plain.logits(config, weights(config), PROMPT).abs().max())
    assert sorted(found[0]) == list(range(1, len(PROMPT)))
    for position, choice in found[0].items():
        row = expected[position - 1]
        assert choice.token == PROMPT[position]
        assert abs(choice.logprob - float(row[choice.token])) <= 2 * plain.budget(config, 23, largest)
        assert choice.rank == 1 + int((row > row[choice.token]).sum())
        assert [token for token, _ in choice.top] == row.topk(2).indices.tolist()


def test_prompt_logprobs_of_a_prompt_longer_than_a_block_of_rows(model: Model) -> None:
    """Logits are computed for 64 rows at a time; no position is missed or told twice."""
    params = SamplingParams(temperature=0.0, prompt_logprobs=0, max_tokens=None)
    prompt = [(i * 13 + i * i) % 290 for i in range(150)]
    desk = Desk(model)
    start = desk.start(1, prompt, params)
    (output,) = desk.run(desk.slice(1, 0, 150, samples=1), starts=[start])
    assert isinstance(output.payload, Payload)
    pairs = dict(output.payload.prompt)
    assert sorted(pairs) == list(range(1, 150))
    assert all(pairs[position].token == prompt[position] for position in pairs)


def test_end_tokens_wait_for_min_tokens(model: Model) -> None:
    """The likeliest token is made an end token: it is drawn with min_tokens 0 and passed over below it."""
    likeliest = Desk(model).alone(1, PROMPT, 1)[0].token
    drawn = {}
    for min_tokens in (0, 1, 2):
        desk = Desk(model)
        params = SamplingParams(temperature=0.0, min_tokens=min_tokens, max_tokens=None)
        start = desk.start(1, PROMPT, params, end_token_ids=frozenset({likeliest}))
        (output,) = desk.run(desk.slice(1, 0, len(PROMPT), samples=1), starts=[start])
        drawn[min_tokens] = output.tokens[0]
    assert drawn[0] == likeliest
    assert drawn[1] == drawn[2] != likeliest


def test_stop_tokens_wait_for_min_tokens_even_when_end_tokens_are_ignored(model: Model) -> None:
    likeliest = Desk(model).alone(1, PROMPT, 1)[0].token
    drawn = []
    for stops in ((), (likeliest,)):
        desk = Desk(model)
        params = SamplingParams(
            temperature=0.0, min_tokens=1, ignore_eos=True, stop_token_ids=stops, max_tokens=None
        )
        start = desk.start(1, PROMPT, params, end_token_ids=frozenset({likeliest}))
        (output,) = desk.run(desk.slice(1, 0, len(PROMPT), samples=1), starts=[start])
        drawn.append(output.tokens[0])
    assert drawn[0] == likeliest != drawn[1]


def test_beams_get_candidates_and_tokens_from_outside(model: Model, config: dict[str, Any]) -> None:
    params = SamplingParams(beam_width=3, temperature=0.0, max_tokens=None)
    desk = Desk(model)
    start = desk.start(1, PROMPT, params)
    (output,) = desk.run(desk.slice(1, 0, len(PROMPT), samples=1), starts=[start])
    assert output.tokens == ()
    assert isinstance(output.payload, Payload)
    expected = plain.logprobs(config, weights(config), PROMPT)[-1]
    assert [token for token, _ in output.payload.candidates] == expected.topk(6).indices.tolist()
    token = output.payload.candidates[1][0]
    (output,) = desk.run(desk.slice(1, len(PROMPT), 1, samples=1), appended=[(1, token)])
    assert isinstance(output.payload, Payload)
    expected = plain.logprobs(config, weights(config), [*PROMPT, token])[-1]
    assert [token for token, _ in output.payload.candidates] == expected.topk(6).indices.tolist()


def test_a_token_for_a_sequence_that_is_gone_is_passed_over(model: Model) -> None:
    """A beam that was preempted starts anew with that token."""
    desk = Desk(model)
    assert desk.run(appended=[(7, 3)]) == ()
