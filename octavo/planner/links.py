"""Links between devices: bytes a second one way, the share of it that transfers reach, and what a transfer costs before
its first byte. Vendors print both directions added up for NVLink and PCIe; here it is one."""

from __future__ import annotations

from dataclasses import dataclass

from octavo.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """One device's end of a link.

    bytes_per_s   one way, as the vendor gives it
    share         of that which large transfers reach
    latency_s     of one collective operation however small
    reach         "node" or "network"
    is_measured   share and latency were measured on it, or else are those of the nearest link that was
    """

    name: str
    label: str
    bytes_per_s: float
    share: float
    latency_s: float
    reach: str
    source: str
    is_measured: bool = False

    def seconds(self, num_bytes: float, operations: int = 1) -> float:
        """Of sending so many bytes in so many operations, one after another."""
        return operations * self.latency_s + num_bytes / (self.bytes_per_s * self.share)


NVLINK_SHARE = 0.74
"""All-reduce of 1 GiB between 2 H100: 333 of 450 GB/s (355 between 4). AIConfigurator, systems/data/h100_sxm,
custom all-reduce of vLLM 0.24, message sizes read as elements of two bytes."""

GRAPH_LATENCY_S, EAGER_LATENCY_S = 4.3e-6, 20.6e-6
"""The smallest all-reduces of the same tables, between 2 H100: launched inside a CUDA graph, and one by one."""

PCIE_SHARE, PCIE_LATENCY_S = 0.225, 51e-6
"""Of PCIe 5.0 without peer access: 14.4 of 64 GB/s and 51 us fitted to a run of vLLM 0.19 on two RTX PRO 6000
(LLMServingSim, bench/examples, Qwen3-32B, tensor-parallel 2)."""

NETWORK_SHARE = 0.9
"""Assumed: no network was measured. The latency of a network operation is taken to be an eager launch."""

_NVIDIA = "NVIDIA data sheet, halved to one direction"
_PCI = "PCI-SIG, 16 lanes, one direction"
_IB = "InfiniBand Trade Association roadmap, 4 lanes, one direction"
_ETHERNET = "line rate of one port"


def _node(name: str, label: str, rate: float, source: str, measured: bool = False) -> Link:
    return Link(
        name=name,
        label=label,
        bytes_per_s=rate,
        share=NVLINK_SHARE,
        latency_s=GRAPH_LATENCY_S,
        reach="node",
        source=source,
        is_measured=measured,
    )


def _pcie(name: str, label: str, rate: float, measured: bool = False) -> Link:
    return Link(
        name=name,
        label=label,
        bytes_per_s=rate,
        share=PCIE_SHARE,
        latency_s=PCIE_LATENCY_S,
        reach="node",
        source=_PCI,
        is_measured=measured,
    )


def _network(name: str, label: str, gigabits: float, source: str) -> Link:
    return Link(
        name=name,
        label=label,
        bytes_per_s=gigabits * 1e9 / 8,
        share=NETWORK_SHARE,
        latency_s=EAGER_LATENCY_S,
        reach="network",
        source=source,
    )


LINKS = {
    link.name: link
    for link in (
        _node("nvlink2", "NVLink 2 (V100)", 150e9, _NVIDIA),
        _node("nvlink3", "NVLink 3 (A100)", 300e9, _NVIDIA),
        _node("nvlink4", "NVLink 4 (H100, H200)", 450e9, _NVIDIA, measured=True),
        _node("nvlink5", "NVLink 5 (B200, GB200)", 900e9, _NVIDIA),
        _node(
            "xgmi", "Infinity Fabric (MI300X), to all seven peers", 448e9, "AMD CDNA 3 white paper, one way"
        ),
        _node(
            "xgmi4", "Infinity Fabric (MI350), to all seven peers", 537.6e9, "AMD CDNA 4 white paper, one way"
        ),
        _pcie("pcie4", "PCIe 4.0 x16", 32e9),
        _pcie("pcie5", "PCIe 5.0 x16", 64e9, measured=True),
        _pcie("pcie6", "PCIe 6.0 x16", 128e9),
        _network("infiniband-hdr", "InfiniBand HDR 200", 200, _IB),
        _network("infiniband-ndr", "InfiniBand NDR 400", 400, _IB),
        _network("infiniband-xdr", "InfiniBand XDR 800", 800, _IB),
        _network("ethernet-10g", "Ethernet 10 Gbit/s", 10, _ETHERNET),
        _network("ethernet-25g", "Ethernet 25 Gbit/s", 25, _ETHERNET),
        _network("ethernet-100g", "Ethernet 100 Gbit/s", 100, _ETHERNET),
        _network("ethernet-400g", "Ethernet 400 Gbit/s", 400, _ETHERNET),
    )
}


def link(name: str) -> Link:
    """Raises ConfigError that lists what there is."""
    if name not in LINKS:
        raise ConfigError(f"the link {name!r} is not known; known are {', '.join(LINKS)}")
    return LINKS[name]
