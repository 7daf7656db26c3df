"""Does anything break in a million random operations? Run it by hand; it prints what it did.

python -m tests.core.soak --operations 1000000 --seed 1

An operation is one call of the scheduler. The last full run is recorded beside this file, in soak.json.
"""

from __future__ import annotations

import argparse
import json
import platform
import time

from tests.core.random_driver import RandomDriver


def soak(num_operations: int, seed: int, operations_per_world: int = 400) -> dict[str, int]:
    """Many small worlds, one after the other. Raises at the first violation, naming the world's seed."""
    totals = dict.fromkeys(
        ("operations", "worlds", "steps", "sequences_verified", "tokens_computed", "slots_read", "copies"), 0
    )
    totals |= dict.fromkeys(("hits", "evictions", "preemptions"), 0)
    while totals["operations"] < num_operations:
        world_seed = seed * 1_000_003 + totals["worlds"]
        driver = RandomDriver(world_seed)
        try:
            driver.play(operations_per_world)
        except BaseException as error:
            error.add_note(f"world seed {world_seed}, operation {driver.num_operations}")
            raise
        counters, shadow = driver.world.scheduler.counters, driver.world.shadow
        totals["operations"] += driver.num_operations
        totals["worlds"] += 1
        totals["steps"] += len(driver.world.steps)
        totals["sequences_verified"] += driver.world.num_verified
        totals["tokens_computed"] += shadow.num_computed
        totals["slots_read"] += shadow.num_reads
        totals["copies"] += shadow.num_copies
        totals["hits"] += counters.hits
        totals["evictions"] += counters.evictions
        totals["preemptions"] += counters.preemptions
    return totals


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--operations", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args()
    begun_s = time.monotonic()
    totals = soak(chosen.operations, chosen.seed)
    command = f"python -m tests.core.soak --operations {chosen.operations} --seed {chosen.seed}"
    record = {"command": command, "python": platform.python_version()}
    print(
        json.dumps(
            record | {"violations": 0} | totals | {"wall_s": round(time.monotonic() - begun_s)}, indent=1
        )
    )
