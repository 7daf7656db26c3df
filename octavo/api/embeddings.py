"""`/v1/embeddings` on the wire."""

from __future__ import annotations

from typing import Literal

import msgspec

from octavo.api.completions import Prompt, several_prompts
from octavo.errors import RequestError

MAX_INPUTS = 2048


class EmbeddingRequest(msgspec.Struct, frozen=True, kw_only=True):
    """input: a text, a list of texts, a list of token ids, or a list of those.

    dimensions   keep the first numbers of each vector and bring it back to length 1
    deadline_ms  from the request's arrival to the end of its answer
    """

    input: str | list[str | int | list[int]]
    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None
    user: str | None = None
    priority: int | None = None
    deadline_ms: int | None = None

    def prompts(self) -> list[Prompt]:
        """One text or one list of token ids per input, from any of the four forms. Raises RequestError."""
        prompts = several_prompts(self.input, "input")
        if len(prompts) > MAX_INPUTS:
            raise RequestError(
                f"input has {len(prompts)} entries, at most {MAX_INPUTS} are allowed", param="input"
            )
        return prompts

    def check_dimensions(self, hidden_size: int) -> None:
        """Raises RequestError for more numbers than there are, or none."""
        if self.dimensions is not None and not 1 <= self.dimensions <= hidden_size:
            raise RequestError(
                f"dimensions must be from 1 to {hidden_size} for this model, got {self.dimensions}",
                param="dimensions",
            )


class Embedding(msgspec.Struct, frozen=True, kw_only=True):
    """embedding: numbers, or their little-endian float32 bytes in base64."""

    object: str = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingUsage(msgspec.Struct, frozen=True, kw_only=True):
    prompt_tokens: int
    total_tokens: int


class EmbeddingList(msgspec.Struct, frozen=True, kw_only=True):
    object: str = "list"
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage
