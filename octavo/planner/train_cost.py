"""What a training run takes: FLOPs, device-hours, days, dollars, energy, and how near its split of compute is to the
best one."""

from __future__ import annotations

from dataclasses import dataclass

from octavo.arch.shape import Shape
from octavo.errors import ConfigError
from octavo.planner import flops
from octavo.planner.hardware import Device
from octavo.planner.laws import FLOP_PER_PARAM_TOKEN, Optimum, ParametricLaw

ASSUMED_MFU = 0.40
"""Model-FLOP utilisation where none was measured. Llama 3 405B reached 0.38 to 0.43 on up to 16,384 H100s (arXiv
2407.21783 sec. 3.3.2)."""

MEASURED_MFU = {"h100-sxm": 0.387, "a100-40gb-sxm": 0.485, "a100-80gb-sxm": 0.485}
"""In bf16: medians of 15 and 25 runs of MPT models on 16 to 64 devices (MosaicML llm-foundry,
scripts/train/benchmarking/README.md), causal attention counted as it is computed. Its runs on 128 to 512 devices are
4.6 % off in the median, 23 of 27 within 10 %."""

HOUR_S = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """Devices that train, and what they achieve.

    mfu           useful FLOPs over peak; None for what is known of such devices
    usd_per_hour  of one device; None where nobody said
    """

    device: Device
    num_devices: int = 1
    precision: str = "bf16"
    mfu: float | None = None
    usd_per_hour: float | None = None

    def __post_init__(self) -> None:
        if self.mfu is not None and not 0 < self.mfu <= 1:
            raise ConfigError(f"mfu must be above 0 and at most 1, got {self.mfu:g}")
        if self.num_devices < 1:
            raise ConfigError(f"training needs at least 1 device, got {self.num_devices}")
        if self.usd_per_hour is not None and not self.usd_per_hour > 0:
            raise ConfigError(f"the price of a device-hour must be positive, got {self.usd_per_hour:g}")

    @property
    def price_usd(self) -> float | None:
        """Of a device-hour: what was said, else the device's default."""
        return self.device.usd_per_hour if self.usd_per_hour is None else self.usd_per_hour

    @property
    def utilization(self) -> float:
        """Useful FLOPs over peak: what was said, else measured on such devices, else assumed."""
        if self.mfu is not None:
            return self.mfu
        return MEASURED_MFU.get(self.device.name, ASSUMED_MFU) if self.precision == "bf16" else ASSUMED_MFU

    @property
    def flop_per_s(self) -> float:
        """Useful FLOPs of one device in a second."""
        return self.device.rate(self.precision) * self.utilization

    def flop_of_hours(self, device_hours: float) -> float:
        """Useful FLOPs of so many device-hours."""
        return device_hours * HOUR_S * self.flop_per_s

    def flop_of_usd(self, usd: float) -> float:
        """Useful FLOPs that money buys. Raises ConfigError where the device has no price."""
        return self.flop_of_hours(usd / self.priced())

    def usd_per_flop(self) -> float:
        """Of one useful FLOP. Raises ConfigError where the device has no price."""
        return self.priced() / HOUR_S / self.flop_per_s

    def priced(self) -> float:
        """Dollars of a device-hour. Raises ConfigError where nobody said."""
        if self.price_usd is None:
            raise ConfigError(
                f"no price of {self.device.name} is known; give dollars per device-hour with --price"
            )
        return self.price_usd


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainCost:
    """A run's bill.

    flop           useful FLOPs, what `mfu` counts
    energy_wh      at most: every device at its power limit; None where that is unknown
    """

    flop: float
    device_hours: float
    wall_s: float
    usd: float | None
    energy_wh: float | None


def cost(flop: float, fleet: Fleet) -> TrainCost:
    """Of so many useful FLOPs."""
    device_s = flop / fleet.flop_per_s
    hours = device_s / HOUR_S
    price, power = fleet.price_usd, fleet.device.max_w
    return TrainCost(
        flop=flop,
        device_hours=hours,
        wall_s=device_s / fleet.num_devices,
        usd=None if price is None else hours * price,
        energy_wh=None if power is None else hours * power,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What is trained on what.

    params          of the whole model
    active_params   that one token passes: what laws of dense models mean by N
    flop_per_token  forward and backward
    is_exact        whether that was counted from a shape, or is 6 N
    """

    params: float
    active_params: float
    tokens: float
    flop_per_token: float
    is_exact: bool

    @property
    def flop(self) -> float:
        return self.flop_per_token * self.tokens


def of_shape(shape: Shape, tokens: float, sequence_tokens: int) -> Workload:
    """A shape trained on sequences of one length, each attending only to itself; counted matrix by matrix."""
    if tokens < sequence_tokens or sequence_tokens < 1:
        raise ConfigError(
            f"{tokens:.4g} training tokens in sequences of {sequence_tokens}: at least one whole sequence is needed"
        )
    counted = flops.training(shape, sequence_tokens)
    return Workload(
        params=shape.num_parameters(),
        active_params=shape.num_active_parameters(),
        tokens=tokens,
        flop_per_token=counted.model / sequence_tokens,
        is_exact=True,
    )


def of_size(params: float, tokens: float, active_params: float | None = None) -> Workload:
    """A size alone: 6 FLOPs a parameter and token."""
    active = params if active_params is None else active_params
    if not 0 < active <= params or not tokens > 0:
        raise ConfigError(
            f"parameters and tokens must be positive, and active parameters not above all of them; got "
            f"{params:.4g}, {active:.4g} active, {tokens:.4g} tokens"
        )
    return Workload(
        params=params,
        active_params=active,
        tokens=tokens,
        flop_per_token=FLOP_PER_PARAM_TOKEN * active,
        is_exact=False,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A plan beside the best split of its 6 N D by a law.

    loss            of the plan
    best            the same compute, split best
    enough_flop     compute with which the best split reaches the plan's loss
    """

    loss: float
    best: Optimum
    enough_flop: float

    @property
    def wasted_share(self) -> float:
        """Of the plan's 6 N D, what the best split would save at the same loss."""
        return 1 - self.enough_flop / self.best.flop


def verdict(law: ParametricLaw, params: float, tokens: float) -> Verdict:
    """How good a split is, by a law of dense models."""
    flop = FLOP_PER_PARAM_TOKEN * params * tokens
    loss = law.loss(params, tokens)
    return Verdict(loss=loss, best=law.optimum(flop), enough_flop=flop_for_loss(law, loss))


def flop_for_loss(law: ParametricLaw, loss: float) -> float:
    """Least compute that reaches a loss: on the optimum, what is above E falls as C^-(alpha beta / (alpha + beta)).

    Raises ConfigError for a loss that is not above E.
    """
    if not loss > law.E:
        raise ConfigError(
            f"no compute reaches a loss of {loss:.4f}: the law's irreducible loss is {law.E:.4f}"
        )
    one = law.optimum(FLOP_PER_PARAM_TOKEN)
    assert one.loss is not None
    exponent = law.alpha * law.beta / (law.alpha + law.beta)
    return float(FLOP_PER_PARAM_TOKEN * ((one.loss - law.E) / (loss - law.E)) ** (1 / exponent))
