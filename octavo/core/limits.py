"""What a scheduler may use, and whether a request can ever run within it."""

from __future__ import annotations

from array import array
from dataclasses import dataclass

from octavo.core.keys import MAX_TOKEN
from octavo.core.sequence import Request
from octavo.errors import ConfigError, PromptTooLong, RequestError


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The scheduler's whole configuration.

    num_blocks              blocks in the pool, the null block included
    block_tokens            tokens per block
    max_num_seqs            sequences with memory at a time, choices and beams counted
    max_num_batched_tokens  tokens in one step; at least `max_num_seqs`, so that every running sequence can decode
    max_num_mixed_tokens    the same for a step in which sequences decode, or that another client waits for; it holds
                            what decodes, and half of this beside it, whatever that comes to. None: as the above
    max_model_len           longest sequence, prompt and output
    window_tokens           set when every layer has this sliding window: blocks behind it are freed
    enable_prefix_caching   share and keep the blocks of common prefixes
    max_chunk_tokens        most tokens of one sequence in a step; None leaves the step's budget as the bound
    max_pinned_blocks       blocks that pins may hold; less is allowed where a longest request would not fit beside
    fingerprint             weights and layout; seeds every block key
    """

    num_blocks: int
    block_tokens: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    window_tokens: int | None = None
    enable_prefix_caching: bool = True
    max_chunk_tokens: int | None = None
    max_num_mixed_tokens: int | None = None
    max_pinned_blocks: int = 0
    fingerprint: bytes = b""

    def __post_init__(self) -> None:
        _at_least("num_blocks", self.num_blocks, 2)
        _at_least("block_tokens", self.block_tokens, 1)
        _at_least("max_num_seqs", self.max_num_seqs, 1)
        _at_least("max_num_batched_tokens", self.max_num_batched_tokens, self.max_num_seqs, "max_num_seqs")
        _at_least("max_model_len", self.max_model_len, 2)
        _at_least("max_pinned_blocks", self.max_pinned_blocks, 0)
        if self.window_tokens is not None:
            _at_least("window_tokens", self.window_tokens, 1)
        if self.max_chunk_tokens is not None:
            _at_least("max_chunk_tokens", self.max_chunk_tokens, 1)

        if self.max_num_mixed_tokens is not None:
            _at_least("max_num_mixed_tokens", self.max_num_mixed_tokens, 1)

    def mixed_tokens(self, num_decodes: int) -> int:
        """Tokens of a step that others wait for, with so many that decode in it."""
        if self.max_num_mixed_tokens is None:
            return self.max_num_batched_tokens
        wanted = max(self.max_num_mixed_tokens, num_decodes + (self.max_num_mixed_tokens + 1) // 2)
        return min(wanted, self.max_num_batched_tokens)

    @property
    def chunk_tokens(self) -> int:
        """The effective bound on one sequence's tokens in a step."""
        return min(self.max_chunk_tokens or self.max_num_batched_tokens, self.max_num_batched_tokens)

    def min_blocks(self, num_tokens: int) -> int:
        """Blocks without which a sequence of that length cannot be computed, however slowly."""
        blocks = -(-num_tokens // self.block_tokens)
        if self.window_tokens is None:
            return blocks
        return min(blocks, -(-(self.window_tokens - 1) // self.block_tokens) + 2)

    @property
    def pin_cap_blocks(self) -> int:
        """Blocks that pins may really hold, so that a longest request fits beside them."""
        return max(0, min(self.max_pinned_blocks, self.num_blocks - 1 - self.min_blocks(self.max_model_len)))

    @property
    def usable_blocks(self) -> int:
        """Blocks that one sequence may count on when it is alone."""
        return self.num_blocks - 1 - self.pin_cap_blocks

    @property
    def span_blocks(self) -> int | None:
        """Most blocks one sequence needs at a time under the window, two chunks under way; None without a window."""
        if self.window_tokens is None:
            return None
        span = -(-(self.window_tokens - 1 + 2 * self.chunk_tokens) // self.block_tokens) + 1
        return min(span, self.usable_blocks)


def _at_least(name: str, value: int, low: int, low_name: str = "") -> None:
    if value < low:
        limit = f"{low_name} ({low})" if low_name else str(low)
        raise ConfigError(f"{name} must be at least {limit}, got {value}")


def check_request(limits: Limits, request: Request) -> tuple[int, int]:
    """Sequences it may have at once, and the longest any of them may become.

    Raises PromptTooLong when it can never fit the window or the pool, RequestError when its prompt is empty or
    holds something else than token ids, or when it asks for more sequences than there are seats.
    """
    _check_tokens(request.prompt)
    if not 0 <= request.num_public_tokens <= len(request.prompt):
        raise RequestError(
            f"num_public_tokens is {request.num_public_tokens} and the prompt has {len(request.prompt)}",
            param="num_public_tokens",
        )
    params = request.params
    width = params.num_choices if params.beam_width is None else params.beam_width
    if width > limits.max_num_seqs:
        name = "n" if params.beam_width is None else "beam_width"
        raise RequestError(
            f"the request asks for {width} sequences at once and max_num_seqs is {limits.max_num_seqs}; "
            f"lower {name} or raise max_num_seqs",
            param=name,
        )
    total = limits.max_model_len
    longest = 1 if params.embed else params.max_tokens
    if longest is not None:
        total = min(total, len(request.prompt) + longest)
    _check_fits(limits, len(request.prompt), total)
    _check_begun(request, total)
    return width, total


def _check_begun(request: Request, total: int) -> None:
    """What has been begun must be choices of this request with a token left to draw."""
    if not request.begun:
        return
    params = request.params
    if params.is_told_at_once:
        raise RequestError("a request that is answered as a whole cannot go on from a part", param="begun")
    indexes = [begun.index for begun in request.begun]
    if len(set(indexes)) < len(indexes) or not all(0 <= index < params.n for index in indexes):
        raise RequestError(f"begun names choices {indexes}; there are {params.n}", param="begun")
    for begun in request.begun:
        _check_tokens((*request.prompt, *begun.tokens))
        if len(request.prompt) + len(begun.tokens) >= total:
            raise RequestError(
                f"choice {begun.index} has {len(begun.tokens)} tokens; with its prompt of {len(request.prompt)} it"
                f" may have no more than {total}",
                param="begun",
            )


def _check_tokens(prompt: tuple[int, ...]) -> None:
    if not prompt:
        raise RequestError("the prompt is empty; it must hold at least one token", param="prompt")
    try:
        array("I", prompt)  # 32 bits without a sign: from 0 to MAX_TOKEN
        if type(sum(prompt)) is int:  # a number of another kind makes the sum one of its kind
            return  # the usual case, without a loop
    except (OverflowError, TypeError):
        pass
    for token in prompt:
        if not isinstance(token, int) or not 0 <= token <= MAX_TOKEN:
            raise RequestError(
                f"the prompt must hold token ids between 0 and {MAX_TOKEN}, got {token!r}", param="prompt"
            )


def _check_fits(limits: Limits, num_prompt_tokens: int, total: int) -> None:
    if num_prompt_tokens >= limits.max_model_len:
        raise PromptTooLong(
            f"the prompt has {num_prompt_tokens} tokens and the window is {limits.max_model_len} tokens, of "
            f"which at least one is for the output; shorten the prompt to {limits.max_model_len - 1}",
            param="prompt",
        )
    needed, usable = limits.min_blocks(total), limits.usable_blocks
    if needed > usable:
        raise PromptTooLong(
            f"the prompt has {num_prompt_tokens} tokens and with its output may reach {total}, which takes "
            f"{needed} blocks of {limits.block_tokens} tokens; one sequence may use {usable} blocks "
            f"({usable * limits.block_tokens} tokens): shorten the prompt, lower max_tokens, or give the pool "
            f"more memory",
            param="prompt",
        )
