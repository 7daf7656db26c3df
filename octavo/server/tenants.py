"""Who calls: a tenant, and what of its own a request may see."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenant:
    """One party that shares the server with others.

    tenant_id  names it in logs and metrics, and owns its files, batches and stored answers
    namespace  requests of equal namespaces share cached prefixes; empty is the one without keys
    """

    tenant_id: str
    namespace: bytes = b""

    def namespace_with(self, salt: str | None) -> bytes:
        """Who may share cached blocks with a request: the same tenant with the same salt."""
        if salt is None:
            return self.namespace
        parts = [self.namespace, salt.encode()]
        framed = b"".join(len(part).to_bytes(8, "big") + part for part in parts)
        return hashlib.sha256(b"octavo namespace" + framed).digest()

    @classmethod
    def of_key(cls, key: str) -> Tenant:
        """The tenant of a key that names none: the key's holder alone. The key cannot be found from it."""
        digest = hashlib.sha256(b"octavo tenant" + key.encode()).digest()
        return cls(tenant_id=f"key-{digest[:6].hex()}", namespace=digest)


PUBLIC = Tenant(tenant_id="public")
"""Everybody, where no keys are asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """A tenant in one request.

    request_id  as in the `x-request-id` header
    is_batch    a line of a batch: lowest priority, and nobody waits for its first token
    received_s  when its head had arrived, on the monotonic clock; None where nobody waits
    """

    tenant: Tenant
    request_id: str = ""
    is_batch: bool = False
    received_s: float | None = None
