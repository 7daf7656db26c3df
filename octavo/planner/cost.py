"""Money for tokens: of devices by the hour, by kind of token, and against what an API asks."""

from __future__ import annotations

from dataclasses import dataclass, replace

from octavo.errors import ConfigError
from octavo.planner.capacity import Load, Steps
from octavo.planner.steady import Steady

HOUR_S, MILLION = 3600.0, 1e6


def usd_per_million(usd_per_hour: float, tokens_per_s: float, utilization: float = 1.0) -> float:
    """Of tokens, where devices are paid by the hour and do so many tokens a second for a share of the time."""
    if not usd_per_hour >= 0 or not tokens_per_s > 0:
        raise ConfigError(
            f"dollars an hour cannot be negative and tokens a second must be above 0, got {usd_per_hour:g} and "
            f"{tokens_per_s:g}"
        )
    if not 0 < utilization <= 1:
        raise ConfigError(f"utilization must be above 0 and at most 1, got {utilization:g}")
    return MILLION * usd_per_hour / (HOUR_S * tokens_per_s * utilization)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenSeconds:
    """Device-seconds of a replica for each token of a kind: the share of its time that the kind is the reason of.

    cached_s  of a token of prompt found in a cache: reading its keys and values while the rest of the prompt is
              computed; the memory it takes is not priced
    """

    fresh_s: float
    cached_s: float
    output_s: float


def token_seconds(steps: Steps, made: Steady) -> TokenSeconds:
    """A step with prompts is longer than one without: the difference is the prompts'. What prompts take longer for
    what lies before them in the cache is the cached tokens'."""
    load = steps.load
    devices_s = steps.replica.num_devices / made.requests_per_s
    prompts_s = made.prompt_share * devices_s
    cached_s = 0.0
    if load.cached_tokens:
        alone = Steps(steps.replica, replace(load, prompt_tokens=load.fresh_tokens, cached_tokens=0.0))
        longer = steps.seconds(0.0, load.fresh_tokens) / alone.seconds(0.0, load.fresh_tokens)
        cached_s = prompts_s * max(0.0, 1 - 1 / longer)
    return TokenSeconds(
        fresh_s=(prompts_s - cached_s) / load.fresh_tokens,
        cached_s=cached_s / load.cached_tokens if load.cached_tokens else 0.0,
        output_s=(devices_s - prompts_s) / load.output_tokens,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """Dollars for a million tokens of each kind.

    cached_usd  None where cached tokens cost what others do
    discount    taken off for requests that may wait, such as a batch interface's half
    """

    input_usd: float
    output_usd: float
    cached_usd: float | None = None
    discount: float = 0.0

    def __post_init__(self) -> None:
        named = (
            ("input", self.input_usd), ("output", self.output_usd), ("cached input", self.cached_usd or 0.0),
        )  # fmt: skip
        for name, value in named:
            if not value >= 0:
                raise ConfigError(f"the price of {name} cannot be negative, got {value:g}")
        if not 0 <= self.discount < 1:
            raise ConfigError(f"a discount lies from 0 to below 1, got {self.discount:g}")

    def usd(self, fresh_tokens: float, cached_tokens: float, output_tokens: float) -> float:
        """Of so many tokens."""
        cached_usd = self.input_usd if self.cached_usd is None else self.cached_usd
        whole = fresh_tokens * self.input_usd + cached_tokens * cached_usd + output_tokens * self.output_usd
        return whole * (1 - self.discount) / MILLION

    def of_request(self, load: Load) -> float:
        return self.usd(load.fresh_tokens, load.cached_tokens, load.output_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakEven:
    """Devices that are paid whether used or not, against an API that is paid by the token.

    usd_per_hour        of the devices
    requests_per_s      that they can do
    requests_per_hour   from which on they cost less; above what they can do where they never do
    utilization         the same as a share of what they can do
    """

    usd_per_hour: float
    requests_per_s: float
    request_usd: float
    requests_per_hour: float
    utilization: float

    @property
    def pays(self) -> bool:
        return self.utilization <= 1

    def usd_per_request(self, utilization: float) -> float:
        """Of the devices, used so much."""
        return self.usd_per_hour / (HOUR_S * self.requests_per_s * utilization)


def break_even(usd_per_hour: float, requests_per_s: float, load: Load, price: Price) -> BreakEven:
    """Against reserved capacity, not what is used of it: that is paid for too.

    Raises ConfigError for an API that asks nothing.
    """
    request_usd = price.of_request(load)
    if not request_usd > 0:
        raise ConfigError("an API that asks nothing for a request is never broken even with")
    if not requests_per_s > 0:
        raise ConfigError(f"requests a second must be above 0, got {requests_per_s:g}")
    per_hour = usd_per_hour / request_usd
    return BreakEven(
        usd_per_hour=usd_per_hour,
        requests_per_s=requests_per_s,
        request_usd=request_usd,
        requests_per_hour=per_hour,
        utilization=per_hour / (HOUR_S * requests_per_s),
    )


def most_watt_hours_per_million(max_w: float, num_devices: int, tokens_per_s: float) -> float:
    """Of tokens, every device at its power limit: no more than this."""
    return max_w * num_devices * MILLION / (HOUR_S * tokens_per_s)


def pool_size(tokens: float, seconds: float, tokens_per_s: float) -> float:
    """Nodes that do so many tokens in so much time, each at a rate: a fraction, as an average over a day is."""
    return tokens / seconds / tokens_per_s
