"""What a tenant can find out about another's prompts by asking for the same (T17). The engine is the real one."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server.process import Served, serving
from tests.server.test_end_to_end import FLAGS, REAL
from tests.server.test_keyring import tenant_row

VICTIM, NOSY = "key-of-the-victim", "key-of-the-nosy"
TEXT = "the a of server memory block token cache reads writes quick slow model step batch queue lock"
NUM_WORDS = 150


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    keys: Path = tmp_path_factory.mktemp("keys") / "keys.toml"
    keys.write_text(tenant_row("victim", VICTIM) + tenant_row("nosy", NOSY))
    with serving([*FLAGS, "--keys", str(keys)], REAL) as served:
        yield served


def prompt(seed: int) -> str:
    rng = random.Random(seed)
    return " ".join(rng.choice(TEXT.split()) for _ in range(NUM_WORDS))


def asked(served: Served, key: str, text: str) -> tuple[float, int]:
    """Seconds, and how many tokens it is said were cached."""
    body = {"prompt": text, "max_tokens": 1}
    began_s = time.perf_counter()
    answer = served.post("/v1/completions", body, headers={"authorization": f"Bearer {key}"})
    took_s = time.perf_counter() - began_s
    return took_s, answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"]


def test_a_neighbours_prompt_is_no_cheaper_than_any_other(real):
    for seed in range(3):
        assert asked(real, VICTIM, prompt(seed))[1] < 16, (
            "the first words may be those of another prompt of its own"
        )
        assert asked(real, VICTIM, prompt(seed))[1] > NUM_WORDS // 2, "one's own is found"
        assert asked(real, NOSY, prompt(seed))[1] < 16, "words of its own as well"
        salted = {"prompt": prompt(seed), "max_tokens": 1, "cache_salt": "public"}
        answer = real.post("/v1/completions", salted, headers={"authorization": f"Bearer {NOSY}"})
        assert answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"] < 16


def area(hits: list[float], misses: list[float]) -> float:
    """Under the curve of a classifier that calls what is fast a hit: 0.5 tells nothing."""
    ranked = sorted([(value, 1) for value in hits] + [(value, 0) for value in misses])
    seen = better = 0
    for _, is_hit in reversed(ranked):
        if is_hit:
            better += seen
        else:
            seen += 1
    return better / (len(hits) * len(misses))


def test_the_area_of_what_tells_everything_and_nothing():
    assert area([1.0, 2.0], [3.0, 4.0]) == 1.0
    assert area([3.0, 4.0], [1.0, 2.0]) == 0.0
    assert area([1.0, 4.0], [2.0, 3.0]) == 0.5


@pytest.mark.slow
def test_times_do_not_tell_a_neighbours_prompt(real, record_property):
    """2,000 probes, half of them for prompts the victim has just sent; the same for one's own prompts do tell."""
    times: dict[str, list[float]] = {"hit": [], "miss": [], "own hit": []}
    for number in range(1000):
        secret = prompt(10_000 + number)
        asked(real, VICTIM, secret)
        probes = [("hit", secret), ("miss", prompt(1_000_000 + number))]
        random.Random(number).shuffle(probes)
        for name, text in probes:
            times[name].append(asked(real, NOSY, text)[0])
        if number % 10 == 0:
            times["own hit"].append(asked(real, NOSY, secret)[0])
    told, control = area(times["hit"], times["miss"]), area(times["own hit"], times["miss"])
    record_property("area", told)
    print(json.dumps({"area": round(told, 4), "control": round(control, 4)}))
    assert 0.45 <= told <= 0.55
    assert control > 0.9, "the probes would have seen a hit"
