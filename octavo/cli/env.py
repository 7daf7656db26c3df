"""The environment: nothing else in Octavo reads it."""

from __future__ import annotations

import os

CONFIG_VARIABLE = "OCTAVO_CONFIG"
NOT_SETTINGS = frozenset({CONFIG_VARIABLE, "OCTAVO_SHARED_DATA"})
"""Variables of ours that are no settings: the configuration file's path, and where tests look for data."""


def variables() -> dict[str, str]:
    """Settings the environment spells, by variable name."""
    return {
        name: value
        for name, value in os.environ.items()
        if name.startswith("OCTAVO_") and name not in NOT_SETTINGS
    }


def config_file() -> str | None:
    """Path of the configuration file, where no flag names one."""
    return os.environ.get(CONFIG_VARIABLE) or None


def service_manager() -> dict[str, str]:
    """What a service manager has set for its service: sd_notify(3), sd_watchdog_enabled(3)."""
    return {
        name: os.environ[name]
        for name in ("NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC")
        if name in os.environ
    }
