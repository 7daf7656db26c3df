"""The table of devices against the public catalogue, value by value."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from octavo.errors import ConfigError
from octavo.planner.devices import ALIASES, DEVICES
from octavo.planner.hardware import PRECISIONS, Device, device, is_device
from octavo.planner.links import LINKS, link
from tests.shared_data import rows

SAME = {
    "a100_sxm": "a100-80gb-sxm",
    "a100_pcie": "a100-80gb-pcie",
    "l4": "l4",
    "l40s": "l40s",
    "h100_sxm": "h100-sxm",
    "h100_pcie": "h100-pcie",
    "h200_sxm": "h200-sxm",
    "b200_sxm": "b200-sxm",
    "gb200": "gb200",
    "b300_sxm": "b300-sxm",
    "gb300": "gb300",
    "mi355x": "mi355x",
    "rtx_pro_6000_server": "rtx-pro-6000",
    "mi300x": "mi300x",
    "mi325x": "mi325x",
}


def test_the_table_agrees_with_the_catalogue() -> None:
    found = {row["gpu"]: row for row in rows("golden/gpu_catalogue.csv")}
    rates = {
        "bf16": "bf16_dense_flops",
        "int8": "int8_dense_ops",
        "fp8": "fp8_dense_flops",
        "fp4": "fp4_dense_flops",
    }
    for theirs, ours in SAME.items():
        row, one = found[theirs], DEVICES[ours]
        assert one.bytes_per_s == float(row["mem_bw_Bps"])
        assert one.memory_bytes == int(row["mem_bytes"])
        assert one.max_w == float(row["power_w"])
        assert one.per_node == int(row["gpus_per_node"])
        assert one.usd_per_hour == (float(row["list_price_usd_h"]) if row["list_price_usd_h"] else None)
        for precision, column in rates.items():
            assert one.flop_per_s.get(precision) == (float(row[column]) if row[column] else None)
        if row["intra_node_Bps_one_way"] and ours != "l40s":
            assert one.node().bytes_per_s == float(row["intra_node_Bps_one_way"])


@pytest.mark.parametrize("name", DEVICES)
def test_every_row_is_sound(name: str) -> None:
    one = DEVICES[name]
    assert one.name == name
    assert one.sources[""]
    assert set(one.flop_per_s) <= set(PRECISIONS)
    assert one.node().reach == "node"
    assert one.network().reach == "network"
    assert one.limit_bytes <= one.memory_bytes * 1.01
    if one.usd_per_hour is not None:
        assert "assumption" in one.sources["usd_per_hour"]
    ridge = one.flop_per_s["bf16"] / one.bytes_per_s
    assert 100 < ridge < 450  # a sparse rate would stand out


def test_names() -> None:
    assert device("H100") is device("h100_sxm") is DEVICES["h100-sxm"]
    assert set(ALIASES.values()) <= set(DEVICES)
    assert is_device("RTX4090")
    assert not is_device("cuda")
    with pytest.raises(ConfigError, match=r"near it are .*h100"):
        device("h1000")
    with pytest.raises(ConfigError, match="nvlink4"):
        link("nvlink")


def test_a_link_reaches_as_far_as_its_switch() -> None:
    assert device("h100").between(8).name == "nvlink4"
    assert device("h100").between(16).reach == "network"
    assert device("gb200").between(64).name == "nvlink5"  # one domain of 72 over nodes of 4
    assert device("gb200").between(80).reach == "network"


def test_a_precision_falls_back_to_the_next_wider() -> None:
    a100 = device("a100")
    assert a100.computes_in("fp8") == "bf16"
    assert a100.rate("fp4") == a100.rate("bf16") == 312e12
    assert device("h100").rate("fp4") == device("h100").rate("fp8")
    with pytest.raises(ConfigError, match="no rate of b200-sxm is known for fp32"):
        device("b200").rate("fp32")
    with pytest.raises(ConfigError, match="not one of"):
        a100.rate("int3")


def test_a_measured_cpu(tmp_path: Path) -> None:
    """The file is what `octavo bench machine --json` prints."""
    file = tmp_path / "machine.json"
    measured = {
        "cpu": {"model": "Some CPU"}, "num_threads": 2, "total_memory_bytes": 32 << 30, "read_bytes_per_s": 2e10,
        "fp32_flop_per_s": 2e11, "bf16_flop_per_s": 1e11, "int8_op_per_s": None,
    }  # fmt: skip
    file.write_text(json.dumps(measured))
    one = device(str(file))
    assert isinstance(one, Device)
    assert (one.rate("bf16"), one.rate("fp8"), one.rate("int8")) == (2e11, 2e11, 2e11)
    assert (one.bytes_per_s, one.memory_bytes, one.usd_per_hour) == (2e10, 32 << 30, None)
    assert "Some CPU" in one.label
    file.write_text("{}")
    with pytest.raises(ConfigError, match="octavo bench machine --json"):
        device(str(file))


def test_links_take_their_latency_and_their_share() -> None:
    nvlink, wire = LINKS["nvlink4"], LINKS["ethernet-10g"]
    assert nvlink.seconds(0, 10) == pytest.approx(43e-6)
    assert nvlink.seconds(450e9 * nvlink.share) == pytest.approx(1 + nvlink.latency_s)
    assert wire.bytes_per_s == 1.25e9
    assert all(one.source and 0 < one.share <= 1 for one in LINKS.values())


def test_shares_of_links_are_those_measured() -> None:
    """All-reduce of 2^29 elements of 2 bytes between 2 H100 in a CUDA graph, and the smallest ones."""
    table = [row for row in rows("kernels/hopper_custom_allreduce_vllm0.24.csv.gz") if row["gpu"] == "h100"]
    graph = {
        int(row["message_size"]): float(row["latency_ms"]) / 1e3
        for row in table
        if row["num_gpus"] == "2" and row["backend"] == "vllm_graph"
    }
    assert LINKS["nvlink4"].share == pytest.approx(2 * 2**29 / graph[2**29] / 450e9, abs=0.01)
    assert LINKS["nvlink4"].latency_s == pytest.approx(graph[128], rel=0.02)
    eager = [row for row in table if row["num_gpus"] == "2" and row["backend"] == "vllm_eager"]
    first = min(eager, key=lambda row: int(row["message_size"]))
    assert LINKS["infiniband-ndr"].latency_s == pytest.approx(float(first["latency_ms"]) / 1e3, rel=0.02)
