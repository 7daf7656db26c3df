"""Who calls: a tenant, on what terms, and what of its own a request may see."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What a tenant may have. None leaves a thing without a limit.

    share                of the engines' work where others wait too: twice as much as a share half as large
    priority             the best that its requests may ask for, and what they have unless they ask for less; smaller
                         goes first
    requests_per_minute  and tokens_per_minute, of input and output: a minute's worth may come at once
    max_concurrency      requests being read, waiting or running
    monthly_tokens       in a calendar month (UTC); those of batches count half
    deadline_s           from a request's arrival to the end of its answer, at the most
    is_suspended         nothing new is taken from it
    """

    share: float = 1.0
    priority: int | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    max_concurrency: int | None = None
    monthly_tokens: int | None = None
    deadline_s: float | None = None
    is_suspended: bool = False


UNLIMITED = Terms()


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenant:
    """One party that shares the server with others.

    tenant_id  names it in logs and metrics, and owns its files, batches and stored answers
    namespace  requests of equal namespaces share cached prefixes; empty is the one without keys
    """

    tenant_id: str
    namespace: bytes = b""
    terms: Terms = UNLIMITED

    def namespace_with(self, salt: str | None) -> bytes:
        """Who may share cached blocks with a request: the same tenant with the same salt."""
        if salt is None:
            return self.namespace
        parts = [self.namespace, salt.encode()]
        framed = b"".join(len(part).to_bytes(8, "big") + part for part in parts)
        return hashlib.sha256(b"octavo namespace" + framed).digest()

    @classmethod
    def of_key(cls, key: str, terms: Terms = UNLIMITED) -> Tenant:
        """The tenant of a key that names none: the key's holder alone. The key cannot be found from it."""
        digest = hashlib.sha256(b"octavo tenant" + key.encode()).digest()
        return cls(tenant_id=f"key-{digest[:6].hex()}", namespace=digest, terms=terms)

    @classmethod
    def named(cls, tenant_id: str, terms: Terms = UNLIMITED) -> Tenant:
        """The tenant of that name: all who hold one of its keys."""
        digest = hashlib.sha256(b"octavo tenant named" + tenant_id.encode()).digest()
        return cls(tenant_id=tenant_id, namespace=digest, terms=terms)


PUBLIC = Tenant(tenant_id="public")
"""Everybody, where no keys are asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """A tenant in one request.

    request_id  as in the `x-request-id` header
    is_batch    a line of a batch: lowest priority, half weight, and nobody waits for its first token
    idempotency_key  what it is recognised by when it is sent again
    received_s  when its head had arrived, on the monotonic clock; None where nobody waits
    """

    tenant: Tenant
    request_id: str = ""
    is_batch: bool = False
    idempotency_key: str | None = None
    received_s: float | None = None


ANYBODY = Caller(tenant=PUBLIC)
