"""Bytes, seconds and counts, in and out."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo import units
from octavo.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", 0),
        ("4096", 4096),
        ("1_000", 1000),
        ("12 B", 12),
        ("1kB", 1000),
        ("1KiB", 1024),
        ("1.5GiB", 3 * 2**29),
        ("8 GB", 8 * 10**9),
        (" 0.5 mib ", 2**19),
        ("2TiB", 2**41),
        ("0.1GB", 10**8),
    ],
)
def test_bytes_are_read(text, value):
    assert units.parse_bytes(text) == value


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("8G", "8GiB"),
        ("8g", "8GB"),
        ("1K", "1KiB"),
        ("", "not a number"),
        ("GiB", "not a number"),
        ("-1", "not a number"),
        ("1e9", "unknown unit 'e'|not a number"),
        ("1.GiB", "not a number"),
        ("4 XB", "unknown unit 'XB'"),
        ("0.3B", "not a whole number"),
        ("1.0000001KB", "not a whole number"),
        ("nan", "not a number"),
        ("١GiB", "not a number"),
    ],
)
def test_sizes_that_are_refused_say_why(text, hint):
    with pytest.raises(ConfigError, match=hint):
        units.parse_bytes(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [("10", 10.0), ("500ms", 0.5), ("1.5 s", 1.5), ("2min", 120.0), ("1h", 3600.0), ("3us", 3e-6)],
)
def test_seconds_are_read(text, value):
    assert units.parse_seconds(text) == pytest.approx(value, rel=1e-15)


@pytest.mark.parametrize(
    ("text", "hint"), [("5m", "5min or 5ms"), ("1y", "unknown unit"), ("soon", "not a number")]
)
def test_times_that_are_refused_say_why(text, hint):
    with pytest.raises(ConfigError, match=hint):
        units.parse_seconds(text)


@pytest.mark.parametrize(("text", "value"), [("7", 7), ("4k", 4000), ("4Ki", 4096), ("1.5M", 1_500_000)])
def test_counts_are_read(text, value):
    assert units.parse_count(text) == value


@pytest.mark.parametrize("text", ["1.5", "2.0001k", "many", "4kB"])
def test_counts_that_are_refused(text):
    with pytest.raises(ConfigError):
        units.parse_count(text)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.00 KiB"),
        (1.5 * 2**30, "1.50 GiB"),
        (123 * 2**20, "123 MiB"),
        (2**40 * 12.34, "12.3 TiB"),
    ],
)
def test_bytes_are_written(value, text):
    assert units.format_bytes(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0 s"),
        (0.0015, "1.50 ms"),
        (12.34, "12.3 s"),
        (119.9, "120 s"),
        (245.0, "4 min 05 s"),
        (12000.0, "3 h 20 min"),
        (5e-9, "5.00 ns"),
        (2.5e-6, "2.50 us"),
    ],
)
def test_seconds_are_written(value, text):
    assert units.format_seconds(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (999, "999"), (65.8578, "65.9"), (6_740_000, "6.74 M"), (1500, "1.50 k")]
)
def test_counts_are_written(value, text):
    assert units.format_count(value) == text


def test_rates_are_written():
    assert units.format_rate(1500, "tok") == "1.50 ktok/s"
    assert units.format_rate(12, "tok") == "12 tok/s"


@settings(deadline=None)
@given(st.integers(0, 2**60))
def test_whole_bytes_come_back_as_they_were(value):
    assert units.parse_bytes(f"{value}") == units.parse_bytes(f"{value}B") == value


@settings(deadline=None)
@given(st.integers(0, 2**20), st.sampled_from(["KiB", "MiB", "GiB", "TiB"]))
def test_a_unit_is_worth_what_it_says(count, unit):
    worth = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}[unit]
    assert units.parse_bytes(f"{count}{unit}") == count * worth


@settings(deadline=None)
@given(st.text(max_size=12))
def test_any_text_is_read_or_refused_by_name(text):
    for parse in (units.parse_bytes, units.parse_seconds, units.parse_count):
        said = ""
        try:
            value = parse(text)
        except ConfigError as error:
            value, said = 0, str(error)
        assert value >= 0
        assert not said or repr(text) in said
