"""Plain random operations on a world: everything a server could be asked to do, at any moment."""

from __future__ import annotations

import random
from dataclasses import replace

from octavo.core.scheduler import Limits
from octavo.core.sequence import Begun, Request, SamplingParams
from tests.core.world import VOCAB, World
from tests.oracles.shadow import alone


def random_limits(rng: random.Random) -> Limits:
    """Small and tight: often one longest sequence only just fits."""
    block_tokens = rng.choice([1, 2, 3, 4])
    max_model_len = rng.choice([12, 20, 32])
    max_num_seqs = rng.choice([1, 2, 4, 6])
    fits = -(-max_model_len // block_tokens)
    num_blocks = 1 + fits + rng.choice([0, 1, 3, fits, 3 * fits])
    return Limits(
        num_blocks=num_blocks,
        block_tokens=block_tokens,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_seqs + rng.choice([0, 1, 5, 40]),
        max_model_len=max_model_len,
        window_tokens=rng.choice([None, None, 1, 4, 7]),
        enable_prefix_caching=rng.random() < 0.85,
        max_chunk_tokens=rng.choice([None, None, 1, 3]),
        max_pinned_blocks=rng.choice([0, 2, fits]),
    )


class RandomDriver:
    """Draws operations for one world. `num_operations` counts calls of the scheduler's public methods."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.limits = random_limits(self.rng)
        self.world = World(self.limits)
        stem_length = self.limits.max_model_len
        self.stems = [tuple(self.rng.randrange(2) for _ in range(stem_length)) for _ in range(2)]
        self.namespaces = [b"", b"", b"tenant"]
        self.num_priorities = self.rng.choice([1, 1, 3])
        self.max_live = self.rng.choice([3, 8])
        self._num_requests = 0

    @property
    def num_operations(self) -> int:
        return len(self.world.calls)

    def request(self) -> Request:
        rng, limits = self.rng, self.limits
        stem = rng.choice(self.stems)[: rng.randrange(0, limits.max_model_len - 3)]
        tail = tuple(rng.randrange(2) for _ in range(rng.randrange(1, 3)))
        params: dict = {"max_tokens": rng.randrange(1, 9)}
        kind = rng.random()
        if kind < 0.15:
            params["n"] = rng.randrange(1, limits.max_num_seqs + 1)
        elif kind < 0.3:
            params["beam_width"] = rng.randrange(1, min(3, limits.max_num_seqs) + 1)
        elif kind < 0.35:
            params["prompt_logprobs"] = 0
        elif kind < 0.4:
            params |= {"max_tokens": None, "ignore_eos": True}
        if rng.random() < 0.2 and params["max_tokens"]:
            params["min_tokens"] = rng.randrange(params["max_tokens"] + 1)
        self._num_requests += 1
        made = Request(
            request_id=f"r{self._num_requests}",
            prompt=stem + tail,
            params=SamplingParams(**params),
            priority=rng.randrange(self.num_priorities),
            namespace=rng.choice(self.namespaces),
            end_token_ids=frozenset({5}),
            num_public_tokens=rng.choice([0, 0, rng.randrange(len(stem) + 1)]),
            client=rng.choice(["", "", "a", "b"]),
        )
        return replace(made, begun=self._begun(made)) if rng.random() < 0.2 else made

    def _begun(self, request: Request) -> tuple[Begun, ...]:
        """Some of its choices, each broken off at a random place before its end."""
        if request.params.is_told_at_once:
            return ()
        rng, begun = self.rng, []
        for index in range(request.params.n):
            tokens, _ = alone(request, index, self.limits.max_model_len, VOCAB)
            if rng.random() < 0.7:
                begun.append(Begun(index, tuple(tokens[: rng.randrange(len(tokens))])))
        return tuple(begun)

    def operate(self) -> None:
        """One random operation."""
        rng, world = self.rng, self.world
        live = world.scheduler.sequences
        choice = rng.random()
        if choice < 0.38:
            world.plan()
        elif choice < 0.74:
            errors = frozenset(s for s in live if rng.random() < 0.01)
            world.land(errors)
        elif choice < 0.86:
            if len(live) < self.max_live:
                world.submit(self.request())
        elif choice < 0.95:
            world.advance_ready()
        elif choice < 0.97 and live:
            sequence = live[rng.choice(list(live))]
            if rng.random() < 0.5:
                world.cancel(sequence.request.request_id)
            else:
                world.finish(sequence.seq_id)
        elif choice < 0.985:
            world.pin(
                rng.choice(self.stems)[: rng.randrange(self.limits.max_model_len)],
                rng.choice(self.namespaces),
            )
        elif world.scheduler.cache.pins:
            namespace, tokens = rng.choice(list(world.scheduler.cache.pins))
            world.unpin(tokens, namespace)

    def play(self, num_operations: int) -> None:
        """That many operations, then run everybody to the end."""
        while self.num_operations < num_operations:
            self.operate()
        self.world.drain()
