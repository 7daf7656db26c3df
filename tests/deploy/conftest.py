"""The fake engine's tokenizer, as in the server's own tests."""

from tests.server.conftest import folder

__all__ = ["folder"]
