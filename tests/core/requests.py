"""Short ways to write requests."""

from __future__ import annotations

from collections.abc import Iterable

from octavo.core.sequence import Request, SamplingParams


def request(
    name: str,
    prompt: Iterable[int],
    *,
    priority: int = 0,
    namespace: bytes = b"",
    ends: Iterable[int] = (),
    **params: object,
) -> Request:
    """A request of up to 8 tokens, unless `params` says otherwise."""
    values: dict = {"max_tokens": 8} | params
    return Request(
        request_id=name,
        prompt=tuple(prompt),
        params=SamplingParams(**values),
        priority=priority,
        namespace=namespace,
        end_token_ids=frozenset(ends),
    )
