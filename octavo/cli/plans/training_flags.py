"""Flags that `octavo plan train` and `octavo plan design` share: what trains, at which price, by which law."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from octavo.cli import output
from octavo.cli.amounts import amount

if TYPE_CHECKING:
    from octavo.planner.train_cost import Fleet, TrainCost

DEVICE = "h100-sxm"
DAY_S = 86400.0


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default=DEVICE, help="what trains (default %(default)s)")
    parser.add_argument("--devices", type=int, default=1, metavar="N", help="how many (default %(default)s)")
    parser.add_argument(
        "--precision", default="bf16", help="of the products in training (default %(default)s)"
    )
    parser.add_argument(
        "--mfu", type=float, help="useful FLOPs over peak (default: measured on such devices, else 0.40)"
    )
    parser.add_argument(
        "--price", type=float, metavar="USD", help="of a device-hour (default: the device's, an assumption)"
    )
    parser.add_argument("--law", default="corrected", help="published law to judge by (default %(default)s)")
    parser.add_argument(
        "--sequence",
        type=amount,
        default=4096.0,
        metavar="TOKENS",
        help="training sequence (default %(default)g)",
    )
    output.add_json(parser)


def fleet(args: argparse.Namespace) -> Fleet:
    """Raises ConfigError."""
    from octavo.planner.hardware import device
    from octavo.planner.train_cost import Fleet

    return Fleet(
        device=device(args.device),
        num_devices=args.devices,
        precision=args.precision,
        mfu=args.mfu,
        usd_per_hour=args.price,
    )


def fleet_json(fleet: Fleet) -> dict[str, object]:
    return {
        "device": fleet.device.name,
        "num_devices": fleet.num_devices,
        "precision": fleet.precision,
        "mfu": fleet.utilization,
        "flop_per_s": fleet.flop_per_s * fleet.num_devices,
        "usd_per_device_hour": fleet.price_usd,
    }


def bill_json(bill: TrainCost) -> dict[str, object]:
    return {
        "flop": bill.flop,
        "device_hours": bill.device_hours,
        "wall_s": bill.wall_s,
        "usd": bill.usd,
        "energy_wh_at_most": bill.energy_wh,
    }


def describe(bill: TrainCost, fleet: Fleet) -> str:
    """One line for people."""
    from octavo.units import format_count, format_seconds

    days = bill.wall_s / DAY_S
    wall = f"{days:,.0f} days" if days >= 10 else format_seconds(bill.wall_s)
    told = f"{fleet.num_devices} x {fleet.device.name} at MFU {fleet.utilization:g}: {wall}"
    told += f", {format_count(bill.device_hours)} device-hours"
    if bill.usd is not None:
        told += f", ${bill.usd:,.{0 if bill.usd >= 100 else 2}f} at ${fleet.price_usd:g} an hour"
    if bill.energy_wh is not None:
        told += f", at most {format_count(bill.energy_wh)}Wh"
    return told
