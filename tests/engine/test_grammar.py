"""Outputs that follow a grammar, through the whole engine: valid, ended rightly, and the same in any company.

Oracles: jsonschema, `re`, and membership in the list of choices. What a request gives alone is the reference.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from octavo import LLM, AsyncLLM, SamplingParams
from octavo.core.sequence import Grammar
from octavo.decode import grammar as grammars
from octavo.decode.grammar import DeadEnd, Follower
from octavo.engine.outputs import CompletionOutput, RequestEnded, RequestOutput
from octavo.errors import GrammarTooComplex, InvalidGrammar, Unsupported
from tests.engine.test_exact import Job, bits, poisoned, run, tokens
from tests.engine.tiny import END, SMALL, engine, write_checkpoint

PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "b", "c"]}, "maxItems": 3},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
CHOICES = ["yes", "no", "not at all", 'with "quotes"\n', "süß"]
PATTERN = r"[A-F]{2,8}-\d{3}"
LIST = 'start: "[" item ("," item)* "]"\nitem: /[0-9]{1,3}/ | "(" item ")"'


def json_schema(schema: object) -> Grammar:
    return Grammar(kind="json_schema", source=json.dumps(schema))


def choice(texts: list[str]) -> Grammar:
    return Grammar(kind="choice", source=json.dumps(texts))


def is_person(text: str) -> bool:
    jsonschema.validate(json.loads(text), PERSON)
    return True


def is_list(text: str) -> bool:
    """Numbers of up to three digits in any depth of brackets, by undoing the rules."""
    while (inner := re.sub(r"\((\d{1,3})\)", r"\1", text)) != text:
        text = inner
    return re.fullmatch(r"\[\d{1,3}(,\d{1,3})*\]", text) is not None


GRAMMARS: dict[str, tuple[Grammar, Callable[[str], bool]]] = {
    "schema": (json_schema(PERSON), is_person),
    "object": (Grammar(kind="json_object"), lambda text: isinstance(json.loads(text), dict)),
    "choice": (choice(CHOICES), lambda text: text in CHOICES),
    "regex": (Grammar(kind="regex", source=PATTERN), lambda text: re.fullmatch(PATTERN, text) is not None),
    "lark": (Grammar(kind="lark", source=LIST), is_list),
}


@pytest.fixture(scope="module")
def llm(tiny: Path) -> Iterator[LLM]:
    with engine(tiny, max_num_seqs=16, num_kv_blocks=513) as made:
        yield made


def one(llm: LLM, grammar: Grammar | None, **params: Any) -> CompletionOutput:
    given = {"temperature": 1.0, "seed": 1, "max_tokens": 120} | params
    (output,) = llm.generate([40, 41, 42], SamplingParams(grammar=grammar, **given))
    return output.outputs[0]


# ---- what comes out


@pytest.mark.parametrize("name", GRAMMARS)
def test_every_finished_output_is_valid(llm, name):
    """Drawn hot, so that a mask that lets one wrong token through is found out."""
    grammar, is_valid = GRAMMARS[name]
    finished = 0
    for seed in range(12):
        params = SamplingParams(temperature=1.5, seed=seed, max_tokens=100, n=4, grammar=grammar)
        for output in llm.generate(tokens_of(seed), params)[0].outputs:
            assert output.finish_reason in ("stop", "length")
            assert len(output.token_ids) <= 100
            if output.finish_reason == "stop":
                finished += 1
                assert is_valid(output.text), output.text
                assert output.text == text_of(llm, output)
    assert finished >= (30 if name != "object" else 3)


def tokens_of(seed: int) -> list[int]:
    return [(seed * 31 + i * 7) % 250 for i in range(5)]


def text_of(llm: LLM, output: CompletionOutput) -> str:
    """The tokens' bytes, put together by hand."""
    ids = [token for token in output.token_ids if token != END]
    return b"".join(llm.tokenizer.token_bytes(token) for token in ids).decode()


@pytest.mark.parametrize("name", GRAMMARS)
def test_a_greedy_output_is_valid(llm, name):
    grammar, is_valid = GRAMMARS[name]
    output = one(llm, grammar, temperature=0.0, max_tokens=60)
    assert output.finish_reason == "length" or is_valid(output.text)


def test_the_mask_comes_before_truncation(llm):
    """top_k=1 of all tokens is hardly ever a letter that fits; top_k=1 of those that fit always is."""
    output = one(llm, Grammar(kind="regex", source="[x-z]{12}"), top_k=1)
    assert re.fullmatch("[x-z]{12}", output.text)
    assert output.finish_reason == "stop"


def test_logprobs_are_those_of_the_model(llm):
    """Of the raw logits, so the first token's do not change by a grammar that allows it."""
    free = one(llm, None, temperature=0.0, max_tokens=1, logprobs=5)
    (token,) = free.token_ids
    others = [t for t in range(256) if t != token]
    held = one(llm, Grammar(kind="regex", source="[a-z]+"), temperature=0.0, max_tokens=1, logprobs=5)
    assert held.logprobs is not None
    assert free.logprobs is not None
    top = {t: p for t, p in held.logprobs[0].items() if p.rank <= 5}
    assert top.items() >= {t: p for t, p in free.logprobs[0].items() if p.rank <= 5}.items()
    assert others


@pytest.mark.parametrize("bias", [{}, {300 - 4: 100.0, 297: 100.0, 70: 100.0}])
def test_a_bias_gets_nothing_past_the_mask(llm, bias):
    grammar = Grammar(kind="regex", source="(ab|ba){3}")
    output = one(llm, grammar, logit_bias=bias, repetition_penalty=1.7, presence_penalty=2.0)
    assert re.fullmatch("(ab|ba){3}", output.text)


# ---- how it ends


def test_what_nothing_can_follow_ends_without_an_end_token(llm):
    output = one(llm, choice(["abc"]))
    assert (output.text, output.finish_reason, output.stop_reason) == ("abc", "stop", None)
    assert END not in output.token_ids


def test_what_could_go_on_ends_by_an_end_token_where_it_may(llm):
    grammar = Grammar(kind="regex", source="[ab]{3,}")
    output = one(llm, grammar, logit_bias={END: 100.0})
    assert output.token_ids[-1] == END
    assert re.fullmatch("[ab]{3}", output.text) or len(output.token_ids) == 3
    assert (output.finish_reason, output.stop_reason) == ("stop", None)


def test_ignore_eos_goes_on_while_anything_can_follow(llm):
    grammar = Grammar(kind="regex", source="[ab]{3,40}")
    output = one(llm, grammar, logit_bias={END: 100.0}, ignore_eos=True)
    assert re.fullmatch("[ab]{40}", output.text)
    assert output.finish_reason == "stop"
    assert one(llm, grammar, ignore_eos=True, max_tokens=7).finish_reason == "length"


def test_min_tokens_holds_while_the_grammar_leaves_a_choice(llm):
    grammar = Grammar(kind="regex", source="c{2,40}")
    output = one(llm, grammar, logit_bias={END: 100.0}, min_tokens=20)
    assert output.finish_reason == "stop"
    assert len(output.token_ids) == 21
    short = one(llm, choice(["no"]), min_tokens=50)
    assert (short.text, short.finish_reason) == ("no", "stop")


def test_complete_with_the_last_token_allowed_is_no_cut(llm):
    assert one(llm, choice(["abc"]), max_tokens=3).finish_reason == "stop"
    cut = one(llm, choice(["abcd"]), max_tokens=3)
    assert (cut.text, cut.finish_reason) == ("abc", "length")


def test_stop_texts_and_tokens_end_it_too(llm):
    grammar = Grammar(kind="regex", source="xyz[0-9]{5}")
    output = one(llm, grammar, stop=["z"])
    assert (output.text, output.finish_reason, output.stop_reason) == ("xy", "stop", "z")
    kept = one(llm, grammar, stop=["z"], include_stop_str_in_output=True)
    assert (kept.text, kept.stop_reason) == ("xyz", "z")


def test_a_model_without_end_tokens_ends_all_the_same(tmp_path):
    folder = write_checkpoint(tmp_path / "endless", eos_token_id=None)
    config = folder / "tokenizer_config.json"
    config.write_text(json.dumps({"bos_token": "<begin>"}))
    with engine(folder) as made:
        assert made.tokenizer.end_ids == frozenset()
        output = one(made, json_schema(PERSON), max_tokens=200, seed=3)
        assert output.finish_reason == "stop"
        assert is_person(output.text)


def test_rows_past_the_tokenizer_are_never_drawn(tmp_path):
    folder = write_checkpoint(tmp_path / "padded", vocab_size=340)
    with engine(folder) as made:
        for seed in range(5):
            output = one(made, Grammar(kind="regex", source="(?s:.){30}"), seed=seed, temperature=5.0)
            assert max(output.token_ids) < END
            assert len(output.text) == 30


# ---- what is refused, and what fails alone


@pytest.mark.parametrize(
    ("grammar", "named"),
    [
        (json_schema({"type": "object", "not": {}}), "not"),
        (json_schema({"properties": {"a": {"if": {}, "then": {}}}}), "if, then"),
        (json_schema({"type": "string", "pattern": "(a"}), "unclosed group"),
        (Grammar(kind="json_schema", source="{"), "not valid JSON"),
        (Grammar(kind="regex", source="a(?=b)"), "look-around"),
        (Grammar(kind="lark", source="start: nobody"), "nobody"),
        (choice([]), "at least one"),
    ],
)
def test_what_cannot_be_followed_is_refused_before_it_runs(llm, grammar, named):
    with pytest.raises(InvalidGrammar, match=re.escape(named)) as caught:
        one(llm, grammar)
    assert caught.value.param == "grammar"
    assert llm.engine.num_requests == 0


def test_beams_and_models_without_text_are_refused(llm):
    with pytest.raises(Unsupported, match="beam_width"):
        llm.generate([1], SamplingParams(beam_width=2, temperature=0.0, grammar=choice(["a"])))


def test_what_is_too_large_is_refused(llm):
    with pytest.raises(GrammarTooComplex):
        one(llm, choice([f"v{i}" for i in range(200_000)]))


class Wedged:
    """A follower that cannot go on after `after` tokens."""

    def __init__(self, after: int) -> None:
        self._after = after

    def __call__(self, compiled: Any, output: Any = ()) -> Follower:
        after = self._after

        class Stuck(Follower):
            def mask(self) -> Any:
                if len(self._output) >= after:
                    raise DeadEnd("the grammar cannot be followed any further: on purpose")
                return super().mask()

        return Stuck(compiled, output)


@pytest.mark.parametrize("after", [0, 3])
def test_a_dead_end_fails_that_request_alone(tiny, monkeypatch, after):
    with engine(tiny) as made:
        free = SamplingParams(temperature=0.9, seed=3, max_tokens=12, ignore_eos=True, logprobs=1)
        held = replace(free, grammar=Grammar(kind="regex", source="[a-z]{9}"), n=2)
        (alone,) = made.generate([[5, 6]], free)
        monkeypatch.setattr("octavo.exec.constraints.Follower", Wedged(after))
        failed, other = made.generate([[7, 8, 9], [5, 6]], [held, free])
        assert {output.finish_reason for output in failed.outputs} == {"error"}
        assert all("on purpose" in str(output.error) for output in failed.outputs)
        assert bits(other) == bits(alone)
        monkeypatch.undo()
        assert one(made, choice(["ok"])).text == "ok"
        made.engine.scheduler.check()


def test_nothing_left_by_other_rules_fails_that_request_alone(llm):
    output = one(llm, choice(["ab"]), allowed_token_ids=[0, 1, 2])
    assert (output.finish_reason, output.text) == ("error", "")
    assert "every token is forbidden" in str(output.error)
    assert one(llm, choice(["ok"])).text == "ok"


# ---- the same in any company


def held_jobs(model: str) -> list[Job]:
    drawn = SamplingParams(temperature=1.2, max_tokens=40, logprobs=2)
    common = tokens(model, 33, 1)
    found: list[Job] = []
    for index, (grammar, _) in enumerate(GRAMMARS.values()):
        prompt = common[: 20 + index] + tokens(model, 5 + 3 * index, index)
        found.append((prompt, replace(drawn, seed=index, grammar=grammar, n=1 + index % 3)))
        found.append((prompt, replace(drawn, seed=50 + index, grammar=grammar, temperature=0.0)))
    free = replace(drawn, seed=99, ignore_eos=True)
    found.append((common, free))
    found.append((common, replace(free, grammar=json_schema(PERSON), ignore_eos=False, min_tokens=12)))
    return found


@pytest.fixture(scope="module")
def references(tiny: Path, half: Path) -> dict[str, list[Any]]:
    found = {}
    for model in (str(tiny), str(half)):
        with poisoned(model, enable_prefix_caching=False, max_num_batched_tokens=128) as made:
            found[model] = [bits(run(made, [job])[0]) for job in held_jobs(model)]
    return found


@pytest.fixture(params=["tiny", "half"])
def model(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue(request.param))


def assert_same(outputs: list[RequestOutput], wanted: list[Any]) -> None:
    for index, (output, one) in enumerate(zip(outputs, wanted, strict=True)):
        assert bits(output) == one, f"job {index}"


def test_the_reference_says_something(references, model):
    texts = [choice[3] for _, job in references[model] for choice in job]
    assert len(set(texts)) > len(texts) // 2
    assert {choice[4] for _, job in references[model] for choice in job} == {"stop", "length"}


@pytest.mark.parametrize(
    "settings",
    [
        {"max_num_batched_tokens": 512, "max_num_seqs": 20},
        {"max_chunk_tokens": 3, "max_num_batched_tokens": 16},
        {"block_size": 1, "num_kv_blocks": 1025},
        {"num_kv_blocks": 18},
        {"num_kv_blocks": 18, "enable_prefix_caching": False},
        {"max_num_seqs": 3, "max_num_batched_tokens": 3},
    ],
    ids=str,
)
def test_company_chunks_blocks_and_preemption_change_nothing(references, model, settings):
    with poisoned(model, **settings) as made:
        outputs = run(made, held_jobs(model))
    assert_same(outputs, references[model])
    if settings.get("num_kv_blocks") == 18:
        assert sum(output.metrics.preemptions for output in outputs) > 0


def test_a_warm_cache_changes_nothing(references, model):
    with poisoned(model, max_num_seqs=20) as made:
        for _ in range(2):
            assert_same([run(made, [job])[0] for job in held_jobs(model)], references[model])


def test_choices_do_not_depend_on_how_many_there_are(llm):
    params = SamplingParams(temperature=1.3, seed=5, max_tokens=60, logprobs=1, grammar=json_schema(PERSON))
    found = {n: bits(llm.generate([3, 4, 5], replace(params, n=n))[0])[1] for n in (1, 2, 5)}
    assert found[2] == found[5][:2]
    assert found[1] == found[5][:1]
    assert len({choice[3] for choice in found[5]}) > 2


def test_the_best_of_several_is_among_them(llm):
    params = SamplingParams(temperature=1.3, seed=5, max_tokens=60, logprobs=1, grammar=json_schema(PERSON))
    (several,) = llm.generate([3, 4, 5], replace(params, n=5))
    (best,) = llm.generate([3, 4, 5], replace(params, n=1, best_of=5))
    assert best.outputs[0].text in [output.text for output in several.outputs]


def test_a_grammar_compiled_again_changes_nothing(llm, tiny, monkeypatch):
    """A cache too small for two grammars: each is given up and compiled again in turn."""
    wanted = [one(llm, grammar, seed=4).text for grammar, _ in GRAMMARS.values()]
    with engine(tiny) as made:
        monkeypatch.setattr(made.engine._grammars, "_max_bytes", 1)
        for _ in range(2):
            assert [one(made, grammar, seed=4).text for grammar, _ in GRAMMARS.values()] == wanted
        assert len(made.engine._grammars) == 1


def test_the_same_from_asyncio(llm, tiny):
    wanted = {name: one(llm, grammar, seed=8).text for name, (grammar, _) in GRAMMARS.items()}

    async def ask(made: AsyncLLM, name: str) -> str:
        params = SamplingParams(temperature=1.0, seed=8, max_tokens=120, grammar=GRAMMARS[name][0])
        async for update in made.generate([40, 41, 42], params):
            if isinstance(update, RequestEnded):
                return update.output.outputs[0].text
        raise AssertionError("it never ended")

    async def everything() -> dict[str, str]:
        made = AsyncLLM(str(tiny), **SMALL)
        try:
            texts = await asyncio.gather(*(ask(made, name) for name in GRAMMARS))
            with pytest.raises(InvalidGrammar):
                async for _ in made.generate([1], SamplingParams(grammar=json_schema({"not": {}}))):
                    pass
            return dict(zip(GRAMMARS, texts, strict=True))
        finally:
            await made.close()

    assert asyncio.run(everything()) == wanted


def test_a_grammar_that_has_grown_to_its_limits_is_compiled_anew(tiny, monkeypatch):
    """What others made llguidance work out counts against nobody else; the output is what it would have been."""
    grammar = Grammar(kind="regex", source="[ab]*a[ab]{14}c")
    with engine(tiny) as made:
        wanted = one(made, grammar, seed=2, max_tokens=50).token_ids
    calls = []
    real = grammars.Grammars.compiled_anew
    monkeypatch.setattr(
        grammars.Grammars, "compiled_anew", lambda self, one: (calls.append(one), real(self, one))[1]
    )
    monkeypatch.setattr("octavo.codec.grammar.MAX_LEXER_STATES", 60)
    with engine(tiny) as made:
        found = [one(made, grammar, seed=seed, max_tokens=50) for seed in (11, 12, 13, 14, 15, 2)]
    assert found[-1].token_ids == wanted
    assert len(calls) > 1, "the limit was never met"


def test_one_that_asks_for_too_much_by_itself_fails_alone(tiny, monkeypatch):
    monkeypatch.setattr("octavo.codec.grammar.MAX_LEXER_STATES", 20)
    with engine(tiny) as made:
        output = one(made, Grammar(kind="regex", source="[ab]*a[ab]{14}c"), max_tokens=50)
        assert output.finish_reason == "error"
        assert "too many states" in str(output.error)
        assert one(made, choice(["ok"])).text == "ok"
