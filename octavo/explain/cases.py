"""Shipped incidents whose causes are known, and loads that a server bears well: scenes with seeds.

All are of one model on one device: 8.03 billion parameters in bfloat16 (the size of Llama 3.1 8B, whose keys and values
take 131,072 bytes a token) on an H100 SXM, of whose 3.35 TB/s of memory and 989 TFLOP/s (NVIDIA, H100 data sheet) four
fifths and three fifths are taken to be reached.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from octavo.core.limits import Limits
from octavo.errors import ConfigError
from octavo.explain.scenes import Scene
from octavo.sim.lengths import Constant, Empirical, Fixed, Lengths, Poisson, Uniform
from octavo.sim.operations import Failure
from octavo.sim.timing import Blend, Host, Timing
from octavo.sim.workload import Maker, Mix, Open, Prefixes, Workload
from octavo.sim.world import Split

KV_BYTES_PER_TOKEN = 131_072
PARAMETERS = 8.03e9
BYTES_PER_S = 0.8 * 3.35e12
FLOP_PER_S = 0.6 * 989e12
TOKEN_S = 2 * PARAMETERS / FLOP_PER_S
"""Two floating-point operations for each parameter and token (Kaplan et al. 2020, section 2.1)."""
MODEL = Blend(
    overhead_s=0.5e-3,
    weights_s=2 * PARAMETERS / BYTES_PER_S,
    token_s=TOKEN_S,
    context_s=KV_BYTES_PER_TOKEN / BYTES_PER_S,
)
TIMING = Timing(
    model=MODEL, host=Host(turn_s=0.2e-3, plan_s=0.1e-3, front_s=1e-3, reply_s=0.5e-3), source="data sheet"
)
LIMITS = Limits(
    num_blocks=16_001,
    block_tokens=16,
    max_num_seqs=256,
    max_num_batched_tokens=2048,
    max_num_mixed_tokens=512,
    max_model_len=16_384,
)
SEED = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """An incident. `cause` is that of `causes.py`, None for a load that is borne well; `line` tells it in a line."""

    line: str
    cause: str | None
    scene: Scene


def _open(
    rate: float,
    count: int,
    prompt: Lengths,
    output: Lengths,
    *,
    prefixes: Prefixes | None = None,
    clients: tuple[tuple[str, float], ...] = (),
    is_even: bool = False,
) -> Workload:
    """So many requests at a rate per second, with exponential gaps or even ones."""
    mix = Mix(prompt=prompt, output=output, prefixes=prefixes, clients=clients)
    gaps = Constant(rate) if is_even else Poisson(rate)
    return Open(gaps=gaps, maker=Maker(mix, SEED), num_requests=count)


TENANTS = (("ann", 1.0), ("bob", 1.0), ("cyd", 1.0), ("dan", 1.0))

CASES: Mapping[str, Case] = {
    "kv-exhausted": Case(
        line="long answers behind one shared prefix outgrow the KV memory: one preempts the other",
        cause="kv-exhausted",
        scene=Scene(
            limits=replace(LIMITS, num_blocks=501),
            timing=TIMING,
            workload=lambda: _open(
                8.0, 80, Uniform(50, 150), Uniform(300, 600), prefixes=Prefixes(number=1, tokens=1024)
            ),
        ),
    ),
    "long-prompts": Case(
        line="one request in ten has a prompt of 8192 tokens: everybody's tokens wait for its parts",
        cause="long-prompts",
        scene=Scene(
            limits=replace(LIMITS, max_num_batched_tokens=8192, max_num_mixed_tokens=8192),
            timing=TIMING,
            workload=lambda: _open(10.0, 200, Empirical((200,) * 9 + (8192,)), Uniform(50, 150)),
        ),
    ),
    "reservation": Case(
        line="each request reserves memory for the longest it might become (a baseline, before paging)",
        cause="reservation",
        scene=Scene(
            limits=replace(LIMITS, num_blocks=2049, max_model_len=2048),
            timing=TIMING,
            workload=lambda: _open(8.0, 120, Uniform(100, 500), Uniform(150, 450)),
            baseline="contiguous",
        ),
    ),
    "static-batches": Case(
        line="whole batches that nobody joins before the longest answer has ended (a baseline)",
        cause="static-batches",
        scene=Scene(
            limits=replace(LIMITS, max_num_seqs=8, max_model_len=2048),
            timing=TIMING,
            workload=lambda: _open(4.0, 80, Uniform(50, 500), Uniform(20, 400)),
            baseline="static",
        ),
    ),
    "flood": Case(
        line="one of five tenants sends twenty times what another sends",
        cause="flood",
        scene=Scene(
            limits=replace(LIMITS, max_num_seqs=64),
            timing=TIMING,
            workload=lambda: _open(
                60.0, 250, Uniform(200, 600), Uniform(50, 150), clients=(("eve", 20.0), *TENANTS)
            ),
            is_private=True,
        ),
    ),
    "few-seats": Case(
        line="max_num_seqs is 8: requests queue while most of the KV memory is free",
        cause="few-seats",
        scene=Scene(
            limits=replace(LIMITS, max_num_seqs=8),
            timing=TIMING,
            workload=lambda: _open(10.0, 150, Uniform(100, 300), Uniform(50, 200)),
        ),
    ),
    "cache-thrash": Case(
        line="more long prefixes are in use than the cache holds: each is evicted before it is asked for again",
        cause="cache-thrash",
        scene=Scene(
            limits=replace(LIMITS, num_blocks=3001),
            timing=TIMING,
            workload=lambda: _open(
                18.0, 200, Uniform(50, 100), Uniform(10, 30), prefixes=Prefixes(number=24, tokens=4096)
            ),
        ),
    ),
    "private-prefixes": Case(
        line="all tenants send the same system prompt, and each has to have it computed for itself",
        cause="private-prefixes",
        scene=Scene(
            limits=LIMITS,
            timing=TIMING,
            workload=lambda: _open(
                10.0,
                100,
                Uniform(50, 100),
                Uniform(20, 60),
                prefixes=Prefixes(number=1, tokens=4096),
                clients=tuple((f"tenant-{number}", 1.0) for number in range(100)),
            ),
            is_private=True,
        ),
    ),
    "overload": Case(
        line="more comes than can be computed, from everybody alike: only capacity helps",
        cause="overload",
        scene=Scene(
            limits=replace(LIMITS, num_blocks=32_001, max_num_mixed_tokens=2048),
            timing=TIMING,
            workload=lambda: _open(22.0, 200, Uniform(1500, 2500), Uniform(50, 100), clients=TENANTS),
        ),
    ),
    "unbalanced": Case(
        line="one popular prefix draws nearly all requests to one of three engines",
        cause="unbalanced",
        scene=Scene(
            limits=replace(LIMITS, max_num_seqs=16),
            timing=TIMING,
            workload=lambda: _open(
                5.0,
                80,
                Uniform(50, 100),
                Uniform(400, 600),
                prefixes=Prefixes(number=1, tokens=6144),
                is_even=True,
            ),
            num_replicas=3,
        ),
    ),
    "engine-lost": Case(
        line="one of two engines is killed; its requests go on elsewhere when that is noticed",
        cause="engine-lost",
        scene=Scene(
            limits=LIMITS,
            timing=TIMING,
            workload=lambda: _open(6.0, 150, Uniform(100, 300), Uniform(150, 300)),
            num_replicas=2,
            failures=(Failure(at_s=12.0, replica=0, found_s=8.0, back_after_s=15.0),),
            why="engine 0 was killed by signal 9",
        ),
    ),
    "decode-behind": Case(
        line="three engines compute prompts after a scale-up, and the one that answers cannot keep up",
        cause="decode-behind",
        scene=Scene(
            limits=replace(LIMITS, max_num_seqs=32),
            timing=TIMING,
            workload=lambda: _open(20.0, 120, Uniform(500, 1500), Uniform(200, 400)),
            num_replicas=3,
            split=Split(num_decode=1, kv_bytes_per_token=KV_BYTES_PER_TOKEN, bytes_per_s=25e9),
            has_front=False,
        ),
    ),
    "host-bound": Case(
        line="between two steps the device waits for the host longer than it computes",
        cause="host-bound",
        scene=Scene(
            limits=LIMITS,
            timing=replace(TIMING, host=replace(TIMING.host, turn_s=12e-3)),
            workload=lambda: _open(6.0, 150, Uniform(100, 300), Uniform(50, 200)),
        ),
    ),
}

HEALTHY: Mapping[str, Case] = {
    "quiet": Case(
        line="a few requests a second, none of which waits",
        cause=None,
        scene=Scene(
            limits=LIMITS,
            timing=TIMING,
            workload=lambda: _open(4.0, 60, Uniform(100, 400), Uniform(50, 200)),
        ),
    ),
    "busy": Case(
        line="a steady load at two thirds of what can be computed, prefixes shared",
        cause=None,
        scene=Scene(
            limits=LIMITS,
            timing=TIMING,
            workload=lambda: _open(
                16.0, 120, Uniform(100, 400), Uniform(100, 200), prefixes=Prefixes(number=4, tokens=512)
            ),
        ),
    ),
    "fair": Case(
        line="tenants of equal weight on two engines",
        cause=None,
        scene=Scene(
            limits=LIMITS,
            timing=TIMING,
            workload=lambda: _open(16.0, 120, Fixed(300), Uniform(50, 150), clients=TENANTS),
            num_replicas=2,
            is_private=True,
        ),
    ),
}


def case(name: str) -> Case:
    """The incident of that name. Raises ConfigError that lists them."""
    found = {**CASES, **HEALTHY}.get(name)
    if found is None:
        raise ConfigError(
            f"no shipped incident is called {name!r}; there are {', '.join([*CASES, *HEALTHY])}"
        )
    return found
