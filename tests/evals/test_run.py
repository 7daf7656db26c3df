"""Running a task: an honest answerer gets everything, a wrong one nothing, and every figure adds up."""

import math
import random
import re

import pytest

from octavo.errors import ConfigError
from octavo.evals import run, tasks


def read_and_answer(conversations, _max_tokens):
    """A perfect reader of retrieval questions."""
    replies = []
    for messages in conversations:
        content = messages[-1]["content"]
        key = re.search(r"What is the value of (\w+)\?$", content).group(1)
        replies.append(re.search(rf"The value of {key} is (\w+)\.", content).group(1))
    return replies


def count_words(text):
    return len(text.split())


def test_a_perfect_reader_recalls_everything():
    report = run.evaluate("recall", read_and_answer, limit=20, num_pairs=(2, 8), batch_items=7)
    assert report.total.right == report.total.count == 40
    assert {group: share.count for group, share in report.groups.items()} == {2.0: 20, 8.0: 20}
    assert report.misses == ()


def test_a_reader_of_the_first_half_finds_only_early_needles():
    def half(conversations, max_tokens):
        cut = []
        for messages in conversations:
            lines = messages[-1]["content"].splitlines()
            cut.append([{"role": "user", "content": "\n".join([*lines[: len(lines) // 2], lines[-1]])}])
        found = []
        for messages in cut:
            try:
                found += read_and_answer([messages], max_tokens)
            except AttributeError:
                found.append("not there")
        return found

    report = run.evaluate(
        "needle", half, limit=3, depths=(0.0, 0.9), context_tokens=500, count_tokens=count_words
    )
    assert report.groups[0.0].share == 1.0
    assert report.groups[0.9].share == 0.0
    assert report.total.right == 3
    assert [miss.reply for miss in report.misses] == ["not there"] * 3
    plain = report.as_dict()
    assert plain["share"] == 0.5
    assert [group["depth"] for group in plain["groups"]] == [0.0, 0.9]


def test_stdlib_answers_from_the_file_are_right_and_others_wrong():
    answers = {item.messages[0]["content"]: item.answer for item in tasks.stdlib_qa()}

    def recite(conversations, max_tokens):
        assert max_tokens == run.MAX_REPLY_TOKENS["stdlib-qa"]
        sentences = [answers[messages[0]["content"]] for messages in conversations]
        return [s + " And more." if s.endswith(".") else s for s in sentences]

    assert run.evaluate("stdlib-qa", recite, limit=50).total.share == 1.0
    wrong = run.evaluate("stdlib-qa", lambda asked, _: ["No idea."] * len(asked), limit=50)
    assert wrong.total.right == 0
    assert len(wrong.misses) == run.KEPT_MISSES


def test_a_model_that_loses_replies_is_an_error():
    with pytest.raises(ValueError, match="zip"):
        run.evaluate("recall", lambda asked, _: ["x"] * (len(asked) - 1), limit=3)


def test_unknown_tasks_and_missing_arguments_are_refused():
    with pytest.raises(ConfigError, match="stdlib-qa, recall, needle"):
        run.evaluate("riddles", read_and_answer)
    with pytest.raises(ConfigError, match="count_tokens"):
        run.evaluate("needle", read_and_answer)
    with pytest.raises(ConfigError, match="limit is 0"):
        run.evaluate("recall", read_and_answer, limit=0)


@pytest.mark.parametrize("bos_id", [None, 99])
def test_perplexity_of_a_known_distribution(bos_id):
    """Each token costs log(1 + id): the sum is known by counting tokens that are not a window's first."""
    rng = random.Random(0)
    texts = ["".join(chr(97 + rng.randrange(26)) for _ in range(n)) for n in (1, 7, 8, 33)]

    def encode(text):
        return [ord(c) - 97 for c in text]

    def logprobs(windows):
        return [[-math.log(1 + token) for token in window[1:]] for window in windows]

    got = run.perplexity(texts, logprobs, encode, bos_id=bos_id, window_tokens=8, batch_windows=2)
    counted = []
    for text in texts:
        ids = encode(text)
        size = 8 if bos_id is None else 7
        for start in range(0, len(ids), size):
            part = ids[start : start + size]
            counted += part[1:] if bos_id is None else part
    assert got.tokens == len(counted)
    assert got.text_bytes == sum(map(len, texts))
    want = math.prod(1 + token for token in counted) ** (1 / len(counted))
    assert got.perplexity == pytest.approx(want, rel=1e-12)
    assert got.bits_per_byte == pytest.approx(math.log2(want) * len(counted) / got.text_bytes, rel=1e-12)


def test_perplexity_refuses_nothing_and_nonsense():
    with pytest.raises(ConfigError, match="no text"):
        run.perplexity([""], lambda _: [], lambda _: [], bos_id=None)
    with pytest.raises(ConfigError, match="window_tokens is 1"):
        run.perplexity(["a"], lambda _: [], lambda _: [1], bos_id=0, window_tokens=1)
    with pytest.raises(ConfigError, match="gave 3 values for a window of 3 tokens"):
        run.perplexity(["ab"], lambda w: [[0.0] * len(x) for x in w], lambda _: [1, 2], bos_id=0)
