"""Random numbers that are a function of what they are for.

No generator is carried along. The noise for one token is computed from (seed, choice, position, token id)
alone, so a draw does not depend on the batch, on preemption, on speculation, or on which machine goes on
after a crash. The integer part is SplitMix64 (Steele, Lea, Flood 2014), exact on every device.
"""

from __future__ import annotations

from torch import Tensor

_MASK = 2**64 - 1
_GOLDEN = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB


def stream_key(seed: int, choice: int, position: int) -> int:
    """The 64-bit key of one draw: one round of the mixer for each part, so that neighbours share nothing.

    seed      any integer; its lowest 64 bits count
    choice    which of several answers to one prompt, from 0
    position  index in the sequence of the token to be drawn
    """
    key = 0
    for part in (seed, choice, position):
        key = _mix((key + _GOLDEN + part) & _MASK)
    return key


def _mix(x: int) -> int:
    x = ((x ^ (x >> 30)) * _MIX_1) & _MASK
    x = ((x ^ (x >> 27)) * _MIX_2) & _MASK
    return x ^ (x >> 31)


def random_bits(key: int | Tensor, token_ids: Tensor) -> Tensor:
    """64 random bits for each token id, as int64: the SplitMix64 outputs number `token_id` of the stream
    `key`.

    key        of one draw; or of several, [J, 1] int64 with the keys' bits (`signed`)
    token_ids  [N] int64, each at least 0
    Returns [N], or [J, N], int64, fresh; the same bits on every device.
    """
    x = (token_ids + 1).mul_(signed(_GOLDEN)) + (signed(key) if isinstance(key, int) else key)
    x.bitwise_xor_(_shifted(x, 30)).mul_(signed(_MIX_1))
    x.bitwise_xor_(_shifted(x, 27)).mul_(signed(_MIX_2))
    return x.bitwise_xor_(_shifted(x, 31))


def uniform(key: int | Tensor, token_ids: Tensor) -> Tensor:
    """One number per token id, evenly spread over (0, 1), never 0 or 1: the upper 52 bits and a half.

    Returns float64 of the shape of `random_bits`; exact, so equal on every device.
    """
    return _shifted(random_bits(key, token_ids), 12).double().add_(0.5).mul_(2.0**-52)


def gumbel(key: int | Tensor, token_ids: Tensor) -> Tensor:
    """Standard Gumbel noise: argmax(logits + noise) draws from softmax(logits) (Gumbel 1954).

    Returns float64 of the shape of `random_bits`, between -3.6 and 36.1. Devices may differ in the last bit of the
    two logarithms.
    """
    return uniform(key, token_ids).log_().neg_().log_().neg_()


def signed(x: int) -> int:
    """The int64 with the same bits: torch lacks unsigned 64-bit arithmetic, and products wrap alike."""
    return x - 2**64 if x >= 2**63 else x


def _shifted(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64."""
    return (x >> bits).bitwise_and_(2 ** (64 - bits) - 1)
