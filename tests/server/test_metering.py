"""Rates, requests at once and quotas, on a clock of their own."""

from __future__ import annotations

import contextlib

import pytest

from octavo.api.faults import HttpError, fault
from octavo.server.metering import Bucket, Standing, Standings
from octavo.server.tenants import Caller, Tenant, Terms


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def refusal(standing: Standing) -> HttpError:
    with pytest.raises(HttpError) as refused, standing.request():
        pass
    return refused.value


def test_a_bucket_gives_a_minutes_worth_at_once_and_then_its_rate():
    clock = Clock()
    bucket = Bucket(60, clock)
    bucket.take(60)
    assert bucket.level == 0
    assert bucket.wait_s(1) == 1
    clock.now_s += 0.5
    assert bucket.wait_s(1) == pytest.approx(0.5)
    clock.now_s += 3600
    assert bucket.level == 60
    bucket.take(90)
    assert bucket.level == -30
    assert bucket.wait_s(1) == pytest.approx(31)
    assert bucket.fills_in_s == pytest.approx(90)


def test_what_is_larger_than_the_bucket_waits_until_it_is_full():
    clock = Clock()
    bucket = Bucket(60, clock)
    assert bucket.wait_s(1000) == 0
    bucket.take(1)
    assert bucket.wait_s(1000) == pytest.approx(1)


def test_never_more_than_the_rate_allows_in_any_minute():
    """Sixty a minute and a burst of sixty: at most 120 pass in any window of a minute."""
    clock = Clock()
    standing = Standing(Terms(requests_per_minute=60), clock)
    passed: list[float] = []
    for _ in range(4000):
        clock.now_s += 0.05
        with contextlib.suppress(HttpError), standing.request():
            passed.append(clock.now_s)
    for start in passed:
        assert sum(start <= at < start + 60 for at in passed) <= 120
    assert len(passed) == pytest.approx(60 + 200, abs=2)


def test_too_many_at_once_are_refused_and_the_place_comes_back():
    clock = Clock()
    standing = Standing(Terms(max_concurrency=2), clock)
    with standing.request():
        with standing.request():
            clock.now_s += 4
            error = refusal(standing)
            assert (error.code, fault(error).status) == ("rate_limit_exceeded", 429)
            assert "max_concurrency" in str(error)
        with standing.request():
            pass
    assert standing.num_running == 0


def test_a_prompt_is_charged_at_once_and_an_answer_when_it_has_ended():
    clock = Clock()
    standings = Standings(clock)
    tenant = Tenant.named("a", Terms(tokens_per_minute=600))
    standing = standings.of(tenant)
    standing.take_tokens(500)
    with pytest.raises(HttpError, match="tokens_per_minute") as refused:
        standing.take_tokens(200)
    assert refused.value.retry_after_s == pytest.approx(10)
    standings.note(Caller(tenant=tenant), 500, 300)
    with pytest.raises(HttpError) as refused:
        standing.take_tokens(1)
    assert refused.value.retry_after_s == pytest.approx(20.1)
    standing.charge(-500)
    standing.take_tokens(200)


def test_headers_tell_what_is_left():
    clock = Clock()
    standing = Standing(Terms(requests_per_minute=60, tokens_per_minute=6000), clock)
    with standing.request():
        standing.take_tokens(100)
    assert dict(standing.headers()) == {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "59",
        "x-ratelimit-reset-requests": "1.000s",
        "x-ratelimit-limit-tokens": "6000",
        "x-ratelimit-remaining-tokens": "5900",
        "x-ratelimit-reset-tokens": "1.000s",
    }
    assert not dict(Standing(Terms(), clock).headers())


def test_a_spent_month_is_told_not_to_try_again():
    clock = Clock()
    standings = Standings(clock)
    tenant = Tenant.named("a", Terms(monthly_tokens=1000))
    standing = standings.of(tenant)
    standing.spent = 900
    standing.check_quota()
    standings.note(Caller(tenant=tenant), 60, 40)
    with pytest.raises(HttpError) as refused:
        standing.check_quota()
    answer = fault(refused.value)
    assert (answer.status, answer.body.error.code) == (429, "insufficient_quota")
    assert answer.headers["x-should-retry"] == "false"


def test_the_suspended_may_not():
    error = refusal(Standing(Terms(is_suspended=True), Clock()))
    assert (error.code, fault(error).status) == ("permission_denied", 403)


def test_new_terms_go_on_from_where_the_old_ones_were():
    clock = Clock()
    standings = Standings(clock)
    before = Tenant.named("a", Terms(requests_per_minute=2, tokens_per_minute=100))
    for _ in range(2):
        with standings.of(before).request():
            pass
    after = Tenant.named("a", Terms(requests_per_minute=2, tokens_per_minute=500))
    standing = standings.of(after)
    assert "requests_per_minute" in str(refusal(standing))
    standing.take_tokens(400)


def test_lines_of_batches_are_not_counted_twice():
    standings = Standings(Clock())
    tenant = Tenant.named("a", Terms(tokens_per_minute=100))
    standings.note(Caller(tenant=tenant, is_batch=True), 500, 500)
    assert not standings.taken()
    standings.of(tenant).take_tokens(100)


def test_usage_is_taken_once_and_can_be_put_back():
    standings = Standings(Clock())
    caller = Caller(tenant=Tenant.named("a"))
    standings.note(caller, 3, 4)
    taken = standings.taken()
    assert not standings.taken()
    standings.note(caller, 10, 20)
    standings.put_back(taken)
    (used,) = standings.taken().values()
    assert (used.requests, used.input_tokens, used.output_tokens) == (2, 13, 24)
