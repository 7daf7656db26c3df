"""The fixed workloads W1 to W5: token-id prompts from fixed seeds, greedy, output lengths forced.

Lengths never change from repeat to repeat; token ids do, so that no repeat finds its prompts in a prefix cache.
In W4 the common prefix is common within one repeat only.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from octavo.errors import ConfigError

NUM_REQUESTS = 32
WARMUP_REQUESTS = 4
WARMUP_TOKENS = 4


@dataclass(frozen=True, slots=True)
class Job:
    """One request: a prompt of token ids and the number of tokens to draw."""

    prompt: tuple[int, ...]
    num_output_tokens: int


@dataclass(frozen=True, slots=True)
class Shape:
    """Lengths of one workload.

    sizes          (prompt, output) tokens of each request, the shared prefix included in the prompt
    shared_tokens  prefix that all prompts of one repeat have in common
    notes          where the lengths differ from the workload's definition, and why
    """

    id: str
    sizes: tuple[tuple[int, int], ...]
    shared_tokens: int = 0
    notes: tuple[str, ...] = ()

    @property
    def num_prompt_tokens(self) -> int:
        return sum(prompt for prompt, _ in self.sizes)

    @property
    def num_output_tokens(self) -> int:
        return sum(output for _, output in self.sizes)

    @property
    def longest(self) -> int:
        """Tokens of the longest request, prompt and output."""
        return max(prompt + output for prompt, output in self.sizes)

    def num_blocks(self, block_tokens: int) -> int:
        """KV blocks that hold all requests side by side, the shared prefix once."""
        shared = self.shared_tokens // block_tokens
        own = sum(-(-(prompt + output) // block_tokens) - shared for prompt, output in self.sizes)
        return shared + own

    def fit(self, window: int) -> Shape:
        """The same workload for a model of `window` tokens: prompts give way, outputs stay.

        Raises ConfigError when the outputs, or the shared prefix, leave no room for a prompt.
        """
        if self.longest <= window:
            return self
        sizes = tuple((min(prompt, window - output), output) for prompt, output in self.sizes)
        shortest = min(prompt for prompt, _ in sizes)
        if shortest < 1 or (self.shared_tokens and shortest <= self.shared_tokens):
            raise ConfigError(f"{self.id} does not fit a window of {window} tokens; it needs {self.longest}")
        cut = sum(before != after for (before, _), (after, _) in zip(self.sizes, sizes, strict=True))
        note = f"{cut} of {len(sizes)} prompts shortened to fit prompt and output into the window of {window} tokens"
        if len(set(sizes)) == 1:
            note += f": {self.sizes[0][0]} to {sizes[0][0]} tokens"
        return replace(self, sizes=sizes, notes=(*self.notes, note))

    def warmup(self) -> Shape:
        """A small part of the work that touches every kind of step."""
        sizes = [(prompt, min(output, WARMUP_TOKENS)) for prompt, output in self.sizes[:WARMUP_REQUESTS]]
        return replace(self, sizes=tuple(sizes))

    def jobs(self, vocab_size: int, seed: object) -> list[Job]:
        """Requests with token ids drawn evenly from the vocabulary. Equal seeds give equal requests anywhere."""
        draw = random.Random(f"{self.id} {seed}")

        def tokens(count: int) -> tuple[int, ...]:
            return tuple(draw.randrange(vocab_size) for _ in range(count))

        shared = tokens(self.shared_tokens)
        return [Job(shared + tokens(prompt - len(shared)), output) for prompt, output in self.sizes]


def _w3() -> Shape:
    draw = random.Random("W3 lengths")
    return Shape("W3", tuple((draw.randint(64, 512), draw.randint(32, 128)) for _ in range(NUM_REQUESTS)))


SHAPES: dict[str, Callable[[], Shape]] = {
    "W1": lambda: Shape("W1", ((128, 128),)),
    "W2": lambda: Shape("W2", ((2048, 1),)),
    "W3": _w3,
    "W4": lambda: Shape("W4", ((1024 + 32, 32),) * NUM_REQUESTS, shared_tokens=1024),
    "W5": lambda: Shape("W5", ((2048, 64),) * 8),
}


def shape(name: str, window: int | None = None) -> Shape:
    """A workload by its id, cut to a model's window where one is given. Raises ConfigError for unknown ids."""
    if name not in SHAPES:
        raise ConfigError(f"no workload {name!r}; there are: {', '.join(SHAPES)}")
    made = SHAPES[name]()
    return made if window is None else made.fit(window)


def shapes(names: Sequence[str], window: int | None = None) -> list[Shape]:
    return [shape(name, window) for name in names]
