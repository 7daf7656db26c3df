"""What is asked: questions about the standard library, key-value recall, and a needle in a long context.

Every generator is a function of its arguments alone (seeds included), so two runs ask the same questions.
Training uses the same generators with other seeds and other filler text.
"""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from octavo import bundled
from octavo.errors import ConfigError

WORDS: tuple[str, ...] = tuple(
    """
    amber anchor apple arrow autumn badge bamboo banner barley basket beacon berry birch bishop blanket
    bottle breeze bridge bronze bucket butter button cabin cactus camel candle canyon carbon carpet castle
    cedar cherry circus clover cobalt coffee comet copper coral cotton cousin cradle crystal dancer desert
    diamond dolphin dragon eagle ember engine falcon feather fiddle finger flower forest fossil galaxy garden
    ginger glacier goblin granite guitar hammer harbor hazel helmet honey island ivory jacket jasmine jungle
    kettle kitchen ladder lagoon lantern lemon linen lizard lobster magnet maple marble meadow mirror monkey
    morning mountain nectar needle ocean olive orange orchid oyster paddle palace panther parrot pebble pepper
    pigeon pillow planet pocket poplar prairie rabbit raven ribbon river rocket saddle salmon sandal scarlet
    shadow silver spider summer thunder tiger timber tulip turtle valley velvet violet walnut willow winter
    """.split()  # noqa: SIM905
)
"""Keys and values of the retrieval tasks: common words, no two alike in meaning to the tasks."""

MAX_PAIRS = len(WORDS) // 2
FACT = "The value of {key} is {value}."
QUESTION = "What is the value of {key}?"


@dataclass(frozen=True, slots=True)
class Item:
    """One question with its answer.

    messages  chat messages, ready for a chat template
    answer    the sentence to reply with (stdlib-qa), or the one word a right reply names (recall, needle)
    tags      facts to group results by, such as num_pairs or depth; recall and needle also name their key
    """

    task: str
    messages: tuple[Mapping[str, str], ...]
    answer: str
    tags: Mapping[str, int | float | str] = field(default_factory=dict)


def full_reply(item: Item) -> str:
    """The reply the bundled model is trained to give."""
    return FACT.format(key=item.tags["key"], value=item.answer) if "key" in item.tags else item.answer


def user_message(content: str) -> tuple[Mapping[str, str], ...]:
    """A conversation of one user turn."""
    return ({"role": "user", "content": content},)


def read_jsonl(path: Path) -> list[dict[str, str]]:
    """Rows of a gzipped JSON Lines file."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def validation_texts(model: str = bundled.DEFAULT) -> list[str]:
    """Held-out source files shipped beside a bundled model; its training saw none of them."""
    return [row["text"] for row in read_jsonl(bundled.path(model) / "eval" / "validation.jsonl.gz")]


def stdlib_qa(limit: int | None = None, seed: int = 0, model: str = bundled.DEFAULT) -> Iterator[Item]:
    """Questions about functions and classes of the standard library, in an order drawn by `seed`.

    The answer is the first sentence of the docstring. The file ships beside the bundled model and holds the
    very questions it was trained on: the task measures what was memorised and what compression loses of it.
    """
    rows = read_jsonl(bundled.path(model) / "eval" / "stdlib_qa.jsonl.gz")
    random.Random(f"stdlib_qa:{seed}").shuffle(rows)
    for row in rows[:limit]:
        yield Item("stdlib-qa", user_message(row["question"]), row["answer"])


def draw_pairs(rng: random.Random, num_pairs: int) -> list[tuple[str, str]]:
    """Key-value pairs in which no word occurs twice, so that each answer follows from one sentence only."""
    if not 1 <= num_pairs <= MAX_PAIRS:
        raise ConfigError(f"num_pairs is {num_pairs}; there are words for 1 to {MAX_PAIRS} pairs")
    words = rng.sample(WORDS, 2 * num_pairs)
    return list(zip(words[:num_pairs], words[num_pairs:], strict=True))


def recall(num_pairs: int = 8, count: int = 200, seed: int = 0) -> Iterator[Item]:
    """Key-value lookup: `num_pairs` facts, then a question about one, each place equally often."""
    rng = random.Random(f"recall:{num_pairs}:{seed}")
    for number in range(count):
        pairs = draw_pairs(rng, num_pairs)
        asked = number % num_pairs
        key, value = pairs[asked]
        facts = " ".join(FACT.format(key=k, value=v) for k, v in pairs)
        yield Item(
            "recall",
            user_message(f"{facts} {QUESTION.format(key=key)}"),
            value,
            {"num_pairs": num_pairs, "place": asked, "key": key},
        )


def needle(
    depths: Sequence[float],
    context_tokens: int,
    count_per_depth: int,
    seed: int,
    *,
    count_tokens: Callable[[str], int],
    filler: Sequence[str] | None = None,
) -> Iterator[Item]:
    """One fact hidden in unrelated text at each depth, then a question about it.

    depths        place of the fact, 0.0 the start of the text and 1.0 its end
    context_tokens  tokens of the user message, at most; short of it by less than one line of filler
    count_tokens  tokens of a text, by the tokenizer of the model under test
    filler        texts to hide the fact in; default the held-out validation files

    Raises ConfigError when the question alone does not fit, or when the filler runs out.
    """
    texts = validation_texts() if filler is None else filler
    rng = random.Random(f"needle:{context_tokens}:{seed}")
    for depth in depths:
        if not 0.0 <= depth <= 1.0:
            raise ConfigError(f"needle depth is {depth}; it is a fraction from 0.0 to 1.0")
        for _ in range(count_per_depth):
            key, value = draw_pairs(rng, 1)[0]
            fact, question = FACT.format(key=key, value=value), QUESTION.format(key=key)
            room = context_tokens - count_tokens(f"\n{fact}\n") - count_tokens(f"\n{question}")
            if room < 0:
                raise ConfigError(f"context_tokens is {context_tokens}; fact and question alone exceed it")
            lines = filler_lines(rng, texts, room, key, count_tokens)
            lines.insert(round(depth * len(lines)), fact)
            yield Item(
                "needle",
                user_message("\n".join([*lines, question])),
                value,
                {"depth": depth, "context_tokens": context_tokens, "key": key},
            )


def filler_lines(
    rng: random.Random, texts: Sequence[str], room_tokens: int, key: str, count_tokens: Callable[[str], int]
) -> list[str]:
    """Successive lines from a random place in `texts`, at most `room_tokens` of them, none naming `key`."""
    taken: list[str] = []
    used = 0
    for line in _lines_from(rng, texts, key):
        cost = count_tokens(line + "\n")
        if used + cost > room_tokens and taken:
            used = count_tokens("\n".join(taken) + "\n")  # lines joined may need fewer tokens than apart
        if used + cost > room_tokens:
            break
        taken.append(line)
        used += cost
    return taken


def _lines_from(rng: random.Random, texts: Sequence[str], key: str) -> Iterator[str]:
    """Lines with something in them and without `key`, from a random place in one text, then from others."""
    skip = rng.random()
    fruitless = 0
    while fruitless < 1000:
        lines = [line for line in rng.choice(texts).splitlines() if line.strip() and key not in line]
        yield from lines[int(skip * len(lines)) :]
        skip = 0.0
        fruitless = 0 if lines else fruitless + 1
    raise ConfigError(f"none of {len(texts)} filler texts has a usable line")
