"""Offline use: prompts in, finished outputs out, in this process."""

from __future__ import annotations

import time
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import octavo
from octavo.codec.chat import chat_prompt
from octavo.codec.tokenizer import Tokenizer
from octavo.config import KNOBS, EngineConfig
from octavo.core.sequence import SamplingParams
from octavo.engine.build import Built, build
from octavo.engine.outputs import Embedding, EmbeddingOutput, RequestEnded, RequestOutput, Update
from octavo.errors import Bug, ConfigError, RequestError
from octavo.obs import recording, ring
from octavo.obs.flight import Saved, Section
from octavo.units import parse_bytes

Prompt = str | Sequence[int] | Mapping[str, Any]
_T = TypeVar("_T")
Message = Mapping[str, Any]


class LLM:
    """A model ready to answer. The names are the ones scripts written for vLLM use.

    model                   directory, hub id, bundled name, or a lone config.json (random weights)
    dtype                   "auto" takes the checkpoint's own
    quantization            rounds weights when they are loaded. On the CPU "int8" or "int4", which round activations to
                            int8, too, or "w4a16": int4 weights and bfloat16 activations. On a GPU "w8a16", "w4a16" or
                            "fp8", which leave activations as they are. None serves weights as they are
    kv_cache_dtype          "auto" stores keys and values as the model computes them; on a GPU "fp8" in e4m3
    max_model_len           longest prompt plus output, tokens; None takes the model's
    max_num_seqs            sequences running side by side
    max_num_batched_tokens  tokens in one step; None lets the engine choose
    enable_prefix_caching   reuse the keys and values of equal prompt beginnings
    block_size              tokens per KV block; None lets the engine choose
    memory_limit            bytes (or text such as "4GiB") for weights, cache and workspace together
    num_threads             CPU threads; None takes the cores this process may use
    seed                    keys the draws of requests that bring no seed

    Raises ConfigError for settings, LoadError for the model. `close` (or `with`) gives the memory back.
    """

    def __init__(
        self,
        model: str | Path = "auto",
        *,
        dtype: str = "auto",
        quantization: str | None = None,
        kv_cache_dtype: str = "auto",
        max_model_len: int | None = None,
        max_num_seqs: int = 256,
        max_num_batched_tokens: int | None = None,
        enable_prefix_caching: bool = True,
        block_size: int | None = None,
        memory_limit: int | str | None = None,
        num_threads: int | None = None,
        seed: int = 0,
        **more: Any,
    ) -> None:
        config = EngineConfig.of(
            model=str(model),
            dtype=dtype,
            quantization=quantization,
            kv_cache_dtype=kv_cache_dtype,
            max_model_len=max_model_len,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            enable_prefix_caching=enable_prefix_caching,
            block_size=block_size,
            memory_limit=parse_bytes(memory_limit) if isinstance(memory_limit, str) else memory_limit,
            num_threads=num_threads,
            seed=seed,
            **more,
        )
        self._start(build(config))

    @classmethod
    def from_config(cls, config: EngineConfig) -> LLM:
        """An LLM of a whole configuration, as the command line has it."""
        made = cls.__new__(cls)
        made._start(build(config))
        return made

    def _start(self, built: Built) -> None:
        self.built = built
        self.engine = built.engine
        self.tokenizer = built.tokenizer
        self._num_requests = 0

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        priority: int | Sequence[int] = 0,
    ) -> list[RequestOutput]:
        """Answer every prompt; outputs in the order of the prompts.

        prompts          one or many of: text, token ids, {"prompt": text}, {"prompt_token_ids": [...]}
        sampling_params  one for all, or one each; None means `SamplingParams()`
        priority         smaller goes first; one for all, or one each

        All requests are checked before the first runs: RequestError then, and nothing has been computed.
        """
        several = _several(prompts)
        given = SamplingParams() if sampling_params is None else sampling_params
        params = _each(given, len(several), "sampling_params")
        priorities = _each(priority, len(several), "priority")
        ids = self._add_all(several, params, priorities)
        done = {
            update.request_id: update.output
            for update in self._updates(ids)
            if isinstance(update, RequestEnded)
        }
        return [done[request_id] for request_id in ids]

    def embed(self, prompts: Prompt | Sequence[Prompt]) -> list[EmbeddingOutput]:
        """A vector for every prompt, in their order: the mean of the final hidden states, of length 1.

        prompts  as for `generate`; one token shorter than the window at most

        Raises RequestError as `generate` does, and Bug for a prompt whose states are not finite.
        """
        return [_embedding(output) for output in self.generate(prompts, SamplingParams(embed=True))]

    def stream(self, prompt: Prompt, sampling_params: SamplingParams | None = None) -> Iterator[Update]:
        """Answer one prompt piece by piece; the last update is a `RequestEnded`.

        Leaving the iterator early cancels the request.
        """
        yield from self._updates(self._add_all([prompt], [sampling_params or SamplingParams()], [0]))

    def _updates(self, ids: Sequence[str]) -> Iterator[Update]:
        """Run until these requests have ended; whatever stops it earlier cancels them."""
        left = set(ids)
        try:
            while left:
                for update in self.engine.step():
                    if isinstance(update, RequestEnded):
                        left.discard(update.request_id)
                    yield update
        finally:
            for request_id in sorted(left):
                self.engine.cancel(request_id)

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        add_generation_prompt: bool = True,
        chat_template: str | None = None,
    ) -> list[RequestOutput]:
        """Answer one conversation, or several, rendered with the model's chat template (or the one given)."""
        several = [messages] if messages and isinstance(messages[0], Mapping) else messages
        prompts = [
            {"prompt_token_ids": self.chat_token_ids(one, add_generation_prompt, chat_template)}
            for one in several
        ]
        return self.generate(prompts, sampling_params)

    def chat_token_ids(
        self,
        messages: Any,
        add_generation_prompt: bool = True,
        chat_template: str | None = None,
    ) -> list[int]:
        """Token ids of a conversation. Raises RequestError for what the template refuses."""
        text = chat_prompt(
            self.tokenizer, messages, add_generation_prompt, template=chat_template, now=datetime.now()
        )
        return self.tokenizer.encode(text, add_special_tokens=False)

    def save_recording(self, path: str | Path) -> int:
        """Write down what this engine remembers of its work, for `octavo explain`. Returns the file's bytes.

        path  a file that only its owner may read; there is no text in it, and no tokens are

        Raises ConfigError where it cannot be written.
        """
        path, planned = Path(path), self.built.plan
        settings = {
            knob.name: str(getattr(getattr(planned.config, knob.section), knob.name))
            for knob in KNOBS
            if knob.section != "server" and not knob.secret
        }
        why, name = "its owner asked for it", planned.location.name
        saved = Saved(octavo.__version__, time.time(), time.monotonic(), why, name, settings)
        trail = ring.records(bytes(self.built.trail))
        try:
            return recording.write(path, saved, [(Section("engine"), trail)])
        except OSError as error:
            raise ConfigError(f"the recording {path} cannot be written: {error.strerror}") from error

    def close(self) -> None:
        """Stop the engine's thread and let go of its memory."""
        self.engine.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _add_all(
        self, prompts: Sequence[Prompt], params: Sequence[SamplingParams], priorities: Sequence[int]
    ) -> list[str]:
        """Accept all or none. Raises RequestError while a `stream` of this LLM is still being read."""
        if self.engine.num_requests:
            raise RequestError(
                "this LLM is still streaming another answer; read or close it, or use AsyncLLM"
            )
        ids: list[str] = []
        try:
            for prompt, one, priority in zip(prompts, params, priorities, strict=True):
                text, tokens = read_prompt(prompt, self.tokenizer)
                request_id = f"{self._num_requests}"
                self.engine.add(tokens, one, request_id=request_id, prompt_text=text, priority=priority)
                self._num_requests += 1
                ids.append(request_id)
        except Exception:
            for request_id in ids:
                self.engine.cancel(request_id)
            raise
        return ids


def _embedding(output: RequestOutput) -> EmbeddingOutput:
    if output.embedding is None:
        raise Bug(f"no embedding was computed: {output.outputs[0].error}")
    vector = list(array("f", output.embedding))
    return EmbeddingOutput(output.request_id, Embedding(vector), output.prompt_token_ids, output.metrics)


def read_prompt(prompt: Prompt, tokenizer: Tokenizer) -> tuple[str | None, list[int]]:
    """A prompt in any of its forms as (text if it was text, token ids). Raises RequestError for any other form."""
    if isinstance(prompt, Mapping):
        if set(prompt) == {"prompt_token_ids"}:
            return None, _token_ids(prompt["prompt_token_ids"])
        if set(prompt) == {"prompt"} and isinstance(prompt["prompt"], str):
            return prompt["prompt"], tokenizer.encode(prompt["prompt"])
        raise RequestError(
            f"a prompt given as a mapping has the key 'prompt' or 'prompt_token_ids', got {sorted(prompt)}",
            param="prompt",
        )
    if isinstance(prompt, str):
        return prompt, tokenizer.encode(prompt)
    return None, _token_ids(prompt)


def _token_ids(value: Any) -> list[int]:
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise RequestError(
            f"a prompt is text, a list of token ids, or a mapping with one of them, got {value!r}",
            param="prompt",
        )
    tokens = list(value)
    for token in tokens:
        if isinstance(token, bool) or not isinstance(token, int):
            raise RequestError(f"token ids must be whole numbers, got {token!r}", param="prompt")
    return tokens


def _several(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """A list of prompts from one or many. A flat list of integers is one prompt."""
    if isinstance(prompts, str | Mapping):
        return [prompts]
    if not isinstance(prompts, Iterable):
        raise RequestError(f"prompts are one prompt or several, got {prompts!r}", param="prompt")
    items: list[Any] = list(prompts)
    if items and all(isinstance(item, int) for item in items):
        return [items]
    return items


def _each(value: _T | Sequence[_T], count: int, name: str) -> list[_T]:
    if not isinstance(value, list | tuple):
        return [value] * count  # type: ignore[list-item]
    if len(value) != count:
        raise RequestError(f"{len(value)} {name} for {count} prompts; give one, or one each")
    return list(value)
