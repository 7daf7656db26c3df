"""The unit: systemd finds it right, and the server says to it what the unit expects to hear."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from octavo.config import ServerConfig
from octavo.units import parse_seconds
from tests.server.process import serving

UNIT = Path(__file__).resolve().parents[2] / "deploy" / "octavo.service"
NEEDS = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze (Debian: systemd) is not installed"
)


def settings() -> dict[str, str]:
    lines = UNIT.read_text(encoding="utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))


def analyze(unit: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["systemd-analyze", *arguments, str(unit)], capture_output=True, text=True, timeout=60
    )


@pytest.fixture
def unit(tmp_path) -> Path:
    """The unit with a program that is there."""
    path = tmp_path / "octavo.service"
    path.write_text(UNIT.read_text(encoding="utf-8").replace("/opt/octavo/bin/octavo", sys.executable))
    return path


@NEEDS
def test_systemd_finds_nothing_wrong(unit):
    done = analyze(unit, "verify", "--man=no")
    assert done.returncode == 0, done.stderr
    assert unit.name not in done.stderr


@NEEDS
def test_systemd_calls_it_well_confined(unit):
    done = analyze(unit, "security", "--offline=true", "--threshold=25")
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_time_to_stop_is_above_the_time_to_drain():
    assert parse_seconds(settings()["TimeoutStopSec"]) > ServerConfig().drain_s + 2


class Manager:
    """What systemd hears."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self.path = path

    def until(self, line: str, within_s: float = 30.0) -> list[str]:
        """Everything up to the message with that line."""
        heard: list[str] = []
        deadline_s = time.monotonic() + within_s
        while line not in heard:
            self._socket.settimeout(max(deadline_s - time.monotonic(), 0.01))
            heard += self._socket.recv(65536).decode().splitlines()
        return heard

    def heard(self, for_s: float) -> list[str]:
        heard: list[str] = []
        deadline_s = time.monotonic() + for_s
        while (left_s := deadline_s - time.monotonic()) > 0:
            self._socket.settimeout(left_s)
            try:
                heard += self._socket.recv(65536).decode().splitlines()
            except TimeoutError:
                break
        return heard

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def manager(tmp_path):
    made = Manager(tmp_path / "notify")
    yield made
    made.close()


def test_it_hears_of_loading_being_ready_being_alive_and_stopping(folder, manager):
    env = {**os.environ, "NOTIFY_SOCKET": str(manager.path), "WATCHDOG_USEC": "400000"}
    with serving([str(folder)], env=env) as served:
        before = manager.until("READY=1")
        assert any(line.startswith("STATUS=loading") for line in before)
        assert any(line.startswith("EXTEND_TIMEOUT_USEC=") for line in before)
        assert "WATCHDOG=1" not in before
        assert manager.heard(1.1).count("WATCHDOG=1") >= 4
        os.kill(served.process.pid, signal.SIGSTOP)
        time.sleep(0.3)
        manager.heard(0.1)
        assert "WATCHDOG=1" not in manager.heard(0.6)
        os.kill(served.process.pid, signal.SIGCONT)
        manager.until("WATCHDOG=1")
        served.process.terminate()
        assert any(line.startswith("STATUS=draining") for line in manager.until("STOPPING=1"))
        assert served.process.wait(20) == 0


def test_a_manager_that_has_gone_is_no_reason_to_fail(folder, tmp_path):
    env = {**os.environ, "NOTIFY_SOCKET": str(tmp_path / "nobody"), "WATCHDOG_USEC": "100000"}
    with serving([str(folder)], env=env) as served:
        time.sleep(0.3)
        assert served.health()["status"] == "ready"
