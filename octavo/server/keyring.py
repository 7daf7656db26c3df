"""The keys that may call, and on what terms: a TOML file that holds no key, only their digests.

    [limits]                           # for tenants that say nothing else, and for keys of --api-key
    requests_per_minute = 600

    [[tenant]]
    id = "search"
    keys = ["sha256:9f86d0…"]          # `octavo keys new` makes one
    share = 2.0
    tokens_per_minute = 200_000

    [[public_prefix]]                  # cached once for everybody
    system = "You are a helpful assistant."

Keys have 256 random bits, so their plain digest tells nothing that could be tried out.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec

from octavo.errors import ConfigError
from octavo.server.tenants import PUBLIC, Tenant, Terms

PREFIX = "sha256:"
_DIGEST = re.compile(PREFIX + r"[0-9a-f]{64}")
_T = TypeVar("_T", bound=msgspec.Struct)
_Count = Annotated[int, msgspec.Meta(ge=1, le=10**15)]


class _Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    share: Annotated[float, msgspec.Meta(gt=0, le=10**6)] = 1.0
    priority: Annotated[int, msgspec.Meta(ge=-(2**31), le=2**31)] = 0
    requests_per_minute: _Count | None = None
    tokens_per_minute: _Count | None = None
    max_concurrency: _Count | None = None
    monthly_tokens: _Count | None = None
    deadline_ms: _Count | None = None


class _Tenant(_Limits, frozen=True, kw_only=True, forbid_unknown_fields=True):
    id: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
    keys: list[str]
    suspended: bool = False


class PublicPrefix(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A beginning of prompts that belongs to everybody: of completions, or the system message of chats."""

    text: str | None = None
    system: str | None = None


class _File(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    limits: dict[str, object] = {}
    tenant: list[dict[str, object]] = []
    public_prefix: list[PublicPrefix] = []


@dataclass(frozen=True, slots=True)
class Keyring:
    """Digests of keys, and whose they are. Without any key everybody may call, as `PUBLIC`."""

    digests: tuple[tuple[bytes, Tenant], ...] = ()
    public_prefixes: tuple[PublicPrefix, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.digests)

    def tenant(self, key: str) -> Tenant | None:
        """Whose key it is; None for a wrong one. Compares with every digest, in constant time each."""
        if not self.digests:
            return PUBLIC
        given = hashlib.sha256(key.encode()).digest()
        found = None
        for digest, tenant in self.digests:
            if hmac.compare_digest(digest, given):
                found = tenant
        return found

    @property
    def tenants(self) -> dict[str, Tenant]:
        return {tenant.tenant_id: tenant for _, tenant in self.digests}


def read(path: str | None, api_keys: Sequence[str] = ()) -> Keyring:
    """The keys of a file and those given by themselves. Raises ConfigError that names the file and the place."""
    file = _File() if path is None else _decoded(Path(path).expanduser())
    where = f"{path}: " if path else ""
    common = _converted(file.limits, _Limits, f"{where}[limits]")
    digests: dict[bytes, Tenant] = {}
    seen: set[str] = set()
    for number, fields in enumerate(file.tenant, 1):
        place = f"{where}[[tenant]] {number}"
        row = _converted({**file.limits, **fields}, _Tenant, place)
        if row.id in seen:
            raise ConfigError(f"{place}: there is another tenant {row.id!r}; give each one id")
        seen.add(row.id)
        tenant = Tenant.named(row.id, _terms(row, row.suspended))
        for key in row.keys:
            digest = _digest(key, place)
            if digest in digests:
                raise ConfigError(f"{place}: one of its keys is in the file twice; a key has one tenant")
            digests[digest] = tenant
    for key in api_keys:
        digest = hashlib.sha256(key.encode()).digest()
        digests.setdefault(digest, Tenant.of_key(key, _terms(common) if path else Terms()))
    if path is not None and not digests:
        raise ConfigError(
            f"{where}there is no key in it, and then nobody could call; add a [[tenant]] with keys"
        )
    for number, prefix in enumerate(file.public_prefix, 1):
        if (prefix.text is None) == (prefix.system is None):
            raise ConfigError(f"{where}[[public_prefix]] {number} must have either text or system")
    return Keyring(tuple(digests.items()), tuple(file.public_prefix))


def new_key() -> tuple[str, str]:
    """A key, and what a file holds of it."""
    key = f"octavo-{secrets.token_urlsafe(32)}"
    return key, PREFIX + hashlib.sha256(key.encode()).hexdigest()


def _decoded(path: Path) -> _File:
    try:
        return msgspec.toml.decode(path.read_bytes(), type=_File)
    except OSError as error:
        raise ConfigError(f"cannot read the keys in {path}: {error.strerror}") from error
    except msgspec.DecodeError as error:
        raise ConfigError(f"{path}: {error}") from error


def _converted(fields: dict[str, object], kind: type[_T], place: str) -> _T:
    try:
        return msgspec.convert(fields, kind)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{place}: {error}") from error


def _terms(row: _Limits, is_suspended: bool = False) -> Terms:
    return Terms(
        share=row.share,
        priority=row.priority,
        requests_per_minute=row.requests_per_minute,
        tokens_per_minute=row.tokens_per_minute,
        max_concurrency=row.max_concurrency,
        monthly_tokens=row.monthly_tokens,
        deadline_s=None if row.deadline_ms is None else row.deadline_ms / 1000,
        is_suspended=is_suspended,
    )


def _digest(key: str, place: str) -> bytes:
    if not _DIGEST.fullmatch(key):
        raise ConfigError(
            f"{place}: a key must be {PREFIX} and 64 hexadecimal digits, the digest of a key and never the key "
            "itself (its value is not shown); `octavo keys new` makes both"
        )
    return bytes.fromhex(key.removeprefix(PREFIX))
