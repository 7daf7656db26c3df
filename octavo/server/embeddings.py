"""POST /v1/embeddings: the mean of the model's final hidden states over the input, of length 1."""

from __future__ import annotations

import base64
import math
import sys
from array import array
from collections.abc import Sequence

from octavo.api.embeddings import Embedding, EmbeddingList, EmbeddingRequest, EmbeddingUsage
from octavo.api.parse import parse, warning
from octavo.core.sequence import SamplingParams
from octavo.errors import Bug, Unsupported
from octavo.server import answers
from octavo.server.completions import prompt_tokens
from octavo.server.front import Front
from octavo.server.running import Running
from octavo.server.tenants import Caller
from octavo.server.writer import Writer

PARAMS = SamplingParams(embed=True)


async def begin(front: Front, caller: Caller, body: bytes) -> Writer:
    """Read, check and tokenize a request; nothing of it runs yet. Raises what refuses it."""
    asked, token_ids, headers = await front.off_loop(lambda: _read(front, body), len(body))
    running = front.request(
        caller,
        token_ids,
        PARAMS,
        param="input",
        priority=asked.priority,
        deadline_ms=asked.deadline_ms,
    )
    return _EmbeddingWriter(front, asked, running, headers)


def _read(front: Front, body: bytes) -> tuple[EmbeddingRequest, list[list[int]], dict[str, str]]:
    asked, idle = parse(body, EmbeddingRequest)
    front.check_model(asked.model)
    if front.hidden_size == 0:
        raise Unsupported("this engine computes no embeddings", param="model")
    asked.check_dimensions(front.hidden_size)
    token_ids = [prompt_tokens(front.tokenizer, prompt, "input") for prompt in asked.prompts()]
    return asked, token_ids, warning(idle)


class _EmbeddingWriter(Writer):
    """One list of vectors, in the order of the inputs; there is nothing to stream."""

    def __init__(
        self, front: Front, asked: EmbeddingRequest, running: Running, headers: dict[str, str]
    ) -> None:
        super().__init__(front, running)
        self._asked = asked
        self.headers = headers

    def whole(self, got: Sequence[answers.Answer]) -> EmbeddingList:
        num_tokens = self.running.num_prompt_tokens
        return EmbeddingList(
            data=[Embedding(index=i, embedding=self._vector(one)) for i, one in enumerate(got)],
            model=self.front.card.id,
            usage=EmbeddingUsage(prompt_tokens=num_tokens, total_tokens=num_tokens),
        )

    def _vector(self, answer: answers.Answer) -> list[float] | str:
        if answer.embedding is None:
            raise Bug("the engine sent no embedding")
        values = shortened(array("f", answer.embedding), self._asked.dimensions)
        if self._asked.encoding_format == "base64":
            return base64.b64encode(values.tobytes()).decode("ascii")
        return values.tolist()


def shortened(values: array[float], dimensions: int | None) -> array[float]:
    """The first `dimensions` numbers, again of length 1; as they are where that is all of them."""
    if dimensions is None or dimensions >= len(values):
        return values
    kept = values[:dimensions]
    length = math.sqrt(math.fsum(value * value for value in kept))
    return array("f", (value / length for value in kept)) if length else kept


assert sys.byteorder == "little", "embeddings go out as they lie in memory"
