"""The exception tree: whose fault it is, and what mends it.

Every error that leaves Octavo is an `OctavoError`. Its `code` is stable and machine-readable; its message
names what happened, the value, the limit and the mend. `octavo.api.faults` alone maps codes to HTTP statuses.
"""

from __future__ import annotations


class OctavoError(Exception):
    """Base of everything Octavo raises on purpose."""

    code = "octavo_error"


class ConfigError(OctavoError):
    """A setting is unknown, out of range, or contradicts another. The operator mends it."""

    code = "invalid_config"


class RequestError(OctavoError):
    """One request cannot be served as sent. The caller mends it; nothing else is affected.

    param  name of the offending request field, or None
    """

    code = "invalid_value"

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class PromptTooLong(RequestError):
    """Prompt plus requested output exceed the model's window or the whole KV pool."""

    code = "context_length_exceeded"


class UnknownModel(RequestError):
    """No model of that name is served here."""

    code = "model_not_found"


class Unsupported(RequestError):
    """The request is understood, and this build cannot do it."""

    code = "unsupported_parameter"


class InvalidGrammar(RequestError):
    """What the output is to be held to is malformed, unsatisfiable, or uses what cannot be followed."""

    code = "invalid_grammar"


class GrammarTooComplex(RequestError):
    """What the output is to be held to is sound, and too much to be followed within the limits."""

    code = "schema_too_complex"


class Busy(OctavoError):
    """The queue is full; the same request can succeed later.

    retry_after_s  when to try again, seconds
    """

    code = "overloaded"

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class LoadError(OctavoError):
    """A model folder is missing something, or holds something else than it says. Raised before serving starts."""

    code = "load_error"


class KernelUnavailable(OctavoError):
    """No implementation of an op fits what the model, device and dtype need.

    op           the op's name
    passed_over  one reason for each implementation considered
    """

    code = "kernel_unavailable"

    def __init__(self, op: str, need: object, passed_over: list[str]) -> None:
        reasons = "; ".join(passed_over) or "none is registered"
        super().__init__(f"no implementation of {op} fits {need}: {reasons}")
        self.op = op
        self.passed_over = passed_over


class Bug(OctavoError):
    """An invariant of Octavo's own is broken. Nobody outside can mend it; please report it."""

    code = "internal_error"
