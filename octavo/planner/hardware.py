"""Devices in numbers: dense arithmetic, memory, power, links, and where each number comes from.

Rates are peaks of products without structured sparsity, which doubles what data sheets print first. They are not
efficiencies; `octavo.planner.efficiency` has what was reached.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from octavo.errors import ConfigError
from octavo.planner.links import Link, link

_WIDER = {
    "fp32": ("fp32",),
    "bf16": ("bf16", "fp32"),
    "int8": ("int8", "bf16", "fp32"),
    "fp8": ("fp8", "bf16", "fp32"),
    "fp4": ("fp4", "fp8", "bf16", "fp32"),
}
PRECISIONS = tuple(_WIDER)


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One accelerator, or a CPU that was measured.

    flop_per_s         dense, by one of PRECISIONS; a precision it lacks is missing
    memory_bytes       nominal
    usable_bytes       what its driver gave a process, where a source says so
    max_w, idle_w      power limit; power at rest where a source says so
    node_link          between the devices of a node, and of further nodes where they share a switch of it
    linked             devices that it joins; None for those of a node
    network_link       from node to node, per device, as such nodes are commonly built
    usd_per_hour       a default assumption, no quote: prices differ by provider, region and term
    sources            field to where its value comes from; "" for all others
    """

    name: str
    label: str
    flop_per_s: Mapping[str, float]
    bytes_per_s: float
    memory_bytes: int
    usable_bytes: int | None = None
    max_w: float | None = None
    idle_w: float | None = None
    per_node: int = 8
    linked: int | None = None
    node_link: str = "pcie4"
    network_link: str = "infiniband-ndr"
    usd_per_hour: float | None = None
    sources: Mapping[str, str] = field(default_factory=dict)

    @property
    def limit_bytes(self) -> int:
        """Memory that a process can count on."""
        return self.memory_bytes if self.usable_bytes is None else self.usable_bytes

    def rate(self, precision: str) -> float:
        """FLOP/s at a precision, or at the next wider one the device computes in, as kernels widen operands.

        Raises ConfigError for an unknown precision, and for one whose rate no source gives.
        """
        return self.flop_per_s[self.computes_in(precision)]

    def computes_in(self, precision: str) -> str:
        """The precision that products asked for at another run at."""
        if precision not in _WIDER:
            raise ConfigError(f"precision {precision!r} is not one of {', '.join(PRECISIONS)}")
        for one in _WIDER[precision]:
            if one in self.flop_per_s:
                return one
        known = ", ".join(self.flop_per_s)
        raise ConfigError(f"no rate of {self.name} is known for {precision}; known are {known}")

    def node(self) -> Link:
        return link(self.node_link)

    def network(self) -> Link:
        return link(self.network_link)

    def between(self, ranks: int) -> Link:
        """What so many devices meet over: the node's link as far as it reaches."""
        reach = self.per_node if self.linked is None else self.linked
        return self.node() if ranks <= reach else self.network()


def device(name: str) -> Device:
    """A device by name in any case, or a CPU from the file that `octavo bench machine --json` wrote.

    Raises ConfigError with the nearest names.
    """
    from octavo.planner.devices import ALIASES, DEVICES

    lower = name.lower().replace("_", "-")
    found = DEVICES.get(ALIASES.get(lower, lower))
    if found is not None:
        return found
    if name.endswith(".json"):
        return _measured(Path(name))
    close = difflib.get_close_matches(lower, [*DEVICES, *ALIASES], n=3)
    nearest = f"; near it are {', '.join(close)}" if close else ""
    raise ConfigError(
        f"device {name!r} is not known{nearest}; known are {', '.join(DEVICES)}, "
        "and a file written by `octavo bench machine --json`"
    )


def is_device(name: str) -> bool:
    """Whether `device` would find it, files aside."""
    from octavo.planner.devices import ALIASES, DEVICES

    lower = name.lower().replace("_", "-")
    return lower in DEVICES or lower in ALIASES


def _measured(path: Path) -> Device:
    """A CPU as it was measured: a share of its limits says more than a data sheet's peak."""
    try:
        found = json.loads(path.read_text("utf-8"))
        rates = {
            "fp32": float(found["fp32_flop_per_s"]),
            "bf16": float(max(found["bf16_flop_per_s"], found["fp32_flop_per_s"])),
        }
        if found["int8_op_per_s"] is not None:
            rates["int8"] = float(found["int8_op_per_s"])
        label = f"{found['cpu']['model']}, {found['num_threads']} threads"
        rate, memory = float(found["read_bytes_per_s"]), int(found["total_memory_bytes"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path} is not what `octavo bench machine --json` writes: {type(error).__name__} {error}"
        ) from None
    return Device(
        name="measured",
        label=label,
        flop_per_s=rates,
        bytes_per_s=rate,
        memory_bytes=memory,
        per_node=1,
        network_link="ethernet-10g",
        sources={"": f"measured by `octavo bench machine`, {path.name}"},
    )
