"""What tenants use, and what keeps one within its terms: rates, requests at once, a month's tokens."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from octavo.api.faults import HttpError
from octavo.server.tenants import Caller, Tenant, Terms

BATCH_WEIGHT = 0.5
"""Of a batch's token in its tenant's usage and in its turns."""
FIRST_GUESS_S = 1.0
SMOOTHING = 0.1


class Bucket:
    """An allowance of `per_minute`: it fills steadily, holds a minute's worth, and may be overdrawn.

    clock  seconds that never go back
    """

    def __init__(self, per_minute: int, clock: Callable[[], float]) -> None:
        self.per_minute = per_minute
        self._clock = clock
        self._level = float(per_minute)
        self._at_s = clock()

    @property
    def level(self) -> float:
        """What is left; below 0 when overdrawn."""
        now_s = self._clock()
        self._level = min(self.per_minute, self._level + (now_s - self._at_s) * self.per_minute / 60)
        self._at_s = now_s
        return self._level

    def take(self, amount: float) -> None:
        """Whatever is left; what is negative is given back."""
        self._level = self.level - amount

    def wait_s(self, amount: float) -> float:
        """Seconds until so much is there; of more than a minute's worth, until it is full."""
        return max(min(amount, self.per_minute) - self.level, 0.0) * 60 / self.per_minute

    @property
    def fills_in_s(self) -> float:
        return self.wait_s(self.per_minute)


@dataclass(slots=True)
class Used:
    """Usage since it was last written down."""

    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0


class Standing:
    """How much one tenant has of what its terms give it.

    num_running  requests being read, waiting or running
    spent        weighted tokens of this month that the store knows of
    """

    def __init__(self, terms: Terms, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.terms = terms
        self.num_running = 0
        self.spent = 0.0
        self.used = Used()
        self._mean_s = FIRST_GUESS_S
        self._requests: Bucket | None = None
        self._tokens: Bucket | None = None
        self.accept(terms)

    def accept(self, terms: Terms) -> None:
        """Go by new terms from now on; what they leave as it was goes on."""
        self.terms = terms
        self._requests = self._bucket(self._requests, terms.requests_per_minute)
        self._tokens = self._bucket(self._tokens, terms.tokens_per_minute)

    def _bucket(self, old: Bucket | None, per_minute: int | None) -> Bucket | None:
        if per_minute is None:
            return None
        return old if old is not None and old.per_minute == per_minute else Bucket(per_minute, self._clock)

    @contextlib.contextmanager
    def request(self) -> Iterator[None]:
        """One request, from its head to the end of its answer. Raises HttpError for one too many."""
        terms = self.terms
        if terms.is_suspended:
            raise HttpError("permission_denied", "this tenant is suspended; ask the operator")
        if terms.max_concurrency is not None and self.num_running >= terms.max_concurrency:
            raise HttpError(
                "rate_limit_exceeded",
                f"{self.num_running} of your requests run or wait, at most {terms.max_concurrency} may "
                "(max_concurrency); wait for one to end",
                retry_after_s=self._mean_s / terms.max_concurrency,
            )
        if self._requests is not None:
            if (wait_s := self._requests.wait_s(1)) > 0:
                raise HttpError(
                    "rate_limit_exceeded",
                    f"you have sent {self._requests.per_minute} requests within a minute, as many as you may "
                    f"(requests_per_minute); the next may come in {wait_s:.1f} s",
                    retry_after_s=wait_s,
                )
            self._requests.take(1)
        began_s = self._clock()
        self.num_running += 1
        try:
            yield
        finally:
            self.num_running -= 1
            self._mean_s += SMOOTHING * (self._clock() - began_s - self._mean_s)

    def check_quota(self) -> None:
        """Raises HttpError when the month's tokens are spent."""
        limit = self.terms.monthly_tokens
        spent = self.spent + self.used.input_tokens + self.used.output_tokens
        if limit is not None and spent >= limit:
            raise HttpError(
                "insufficient_quota",
                f"{spent:.0f} tokens are used of the {limit} you have this month (monthly_tokens, UTC); "
                "ask the operator for more",
            )

    def take_tokens(self, count: int) -> None:
        """Those of a prompt. Raises HttpError when the rate leaves no room for them."""
        if self._tokens is None:
            return
        if (wait_s := self._tokens.wait_s(count)) > 0:
            raise HttpError(
                "rate_limit_exceeded",
                f"the prompt's {count} tokens are more than the {max(self._tokens.level, 0):.0f} left of your "
                f"{self._tokens.per_minute} per minute (tokens_per_minute); there is room in {wait_s:.1f} s",
                retry_after_s=wait_s,
            )
        self._tokens.take(count)

    def charge(self, count: int) -> None:
        """Output tokens, after the fact; what is negative is given back."""
        if self._tokens is not None:
            self._tokens.take(count)

    def headers(self) -> Iterator[tuple[str, str]]:
        """`x-ratelimit-*`, for every answer to a tenant with limits."""
        for what, bucket in (("requests", self._requests), ("tokens", self._tokens)):
            if bucket is not None:
                yield f"x-ratelimit-limit-{what}", str(bucket.per_minute)
                yield f"x-ratelimit-remaining-{what}", str(max(math.floor(bucket.level), 0))
                yield f"x-ratelimit-reset-{what}", f"{bucket.fills_in_s:.3f}s"


class Standings:
    """Every tenant's standing, by its id."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._known: dict[str, Standing] = {}

    def of(self, tenant: Tenant) -> Standing:
        standing = self._known.get(tenant.tenant_id)
        if standing is None:
            standing = self._known[tenant.tenant_id] = Standing(tenant.terms, self._clock)
        elif standing.terms is not tenant.terms:
            standing.accept(tenant.terms)
        return standing

    def note(self, caller: Caller, input_tokens: int, output_tokens: int) -> None:
        """A request has ended. Lines of batches are accounted with their batch."""
        standing = self.of(caller.tenant)
        if caller.is_batch:
            return
        standing.charge(output_tokens)
        standing.used.requests += 1
        standing.used.input_tokens += input_tokens
        standing.used.output_tokens += output_tokens

    def taken(self) -> Mapping[str, Used]:
        """What has been used since this was last asked, by tenant."""
        found: dict[str, Used] = {}
        for tenant_id, standing in self._known.items():
            if standing.used.requests:
                found[tenant_id], standing.used = standing.used, Used()
        return found

    def put_back(self, taken: Mapping[str, Used]) -> None:
        """It could not be written down."""
        for tenant_id, used in taken.items():
            now = self._known[tenant_id].used
            now.requests += used.requests
            now.input_tokens += used.input_tokens
            now.output_tokens += used.output_tokens
