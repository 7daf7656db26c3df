"""Prometheus as users run it, with our own configuration: every query of the dashboard and of the alerts finds data."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from deploy.grafana.make_dashboard import TARGET, board
from tests.server.process import Served, serving

DEPLOY = TARGET.parents[2]
NEEDS = pytest.mark.skipif(
    shutil.which("prometheus") is None or shutil.which("promtool") is None,
    reason="Prometheus (Debian: prometheus) is not installed",
)
START_S = 30.0
SCRAPED_S = 30.0


def promtool(*arguments: str, cwd: Path = DEPLOY) -> str:
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, timeout=60, cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def queries() -> list[tuple[str, str]]:
    """(panel, expression) of the dashboard, with Grafana's variables filled in."""
    found = []
    for panel in json.loads(TARGET.read_text(encoding="utf-8"))["panels"]:
        for target in panel.get("targets", ()):
            expr = target["expr"].replace("$__rate_interval", "20s").replace("$instance", ".*")
            assert "$" not in expr, expr
            found.append((panel["title"], expr))
    return found


def test_the_dashboard_is_what_its_script_writes():
    assert json.loads(TARGET.read_text(encoding="utf-8")) == board()


def test_panels_do_not_overlap_and_have_one_id_each():
    panels = board()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (panel["gridPos"]["x"] + x, panel["gridPos"]["y"] + y)
        for panel in panels
        for x in range(panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24


@NEEDS
def test_promtool_finds_nothing_wrong_with_configuration_and_rules():
    promtool("check", "config", "prometheus.yml")
    assert "10 rules" in promtool("check", "rules", "alerts.yml")


@NEEDS
def test_each_alert_fires_when_it_should_and_not_before():
    promtool("test", "rules", "alerts_test.yml", cwd=Path(__file__).parent)


def test_every_alert_is_tested():
    named = re.findall(r"alert: (\w+)", (DEPLOY / "alerts.yml").read_text(encoding="utf-8"))
    tests = Path(__file__).with_name("alerts_test.yml").read_text(encoding="utf-8")
    assert named
    assert set(named) == set(re.findall(r"alertname: (\w+)", tests))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def prometheus(target: str, home: Path) -> Iterator[httpx.Client]:
    """Our configuration, with another target and no patience."""
    text = (DEPLOY / "prometheus.yml").read_text(encoding="utf-8")
    text = text.replace("octavo:8000", target).replace("5s", "500ms").replace("15s", "1s")
    (home / "prometheus.yml").write_text(text, encoding="utf-8")
    shutil.copy(DEPLOY / "alerts.yml", home)
    port = free_port()
    with (home / "log").open("w") as log:
        arguments = [
            f"--config.file={home / 'prometheus.yml'}",
            f"--storage.tsdb.path={home / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
        ]
        process = subprocess.Popen(["prometheus", *arguments], stdout=log, stderr=log, cwd=home)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=10) as client:
            deadline_s = time.monotonic() + START_S
            while True:
                with contextlib.suppress(httpx.TransportError):
                    if client.get("/-/ready").status_code == 200:
                        break
                assert process.poll() is None, (home / "log").read_text()
                assert time.monotonic() < deadline_s, (home / "log").read_text()
                time.sleep(0.1)
            yield client
    finally:
        process.terminate()
        process.wait(20)


def work(served: Served) -> None:
    """Something of everything: answers, a refusal, a line of a batch."""
    served.post("/v1/completions", {"prompt": "import os", "max_tokens": 6, "deadline_ms": 60_000})
    served.post("/v1/completions", {"prompt": "import os", "max_tokens": -1})
    line = {
        "custom_id": "a",
        "method": "POST",
        "url": "/v1/completions",
        "body": {"prompt": "def ", "max_tokens": 3},
    }
    file = {"file": ("lines.jsonl", json.dumps(line).encode())}
    made = served.client.post("/v1/files", files=file, data={"purpose": "batch"}).json()
    served.post(
        "/v1/batches",
        {"input_file_id": made["id"], "endpoint": "/v1/completions", "completion_window": "24h"},
    )


@NEEDS
def test_every_query_finds_data(tmp_path):
    """With the real engine: what it does not tell, no panel can show."""
    import sys

    arguments = ["serve", "--memory-limit", "1GiB", "--max-queued-requests", "1", "--num-threads", "1"]
    command = (sys.executable, "-m", "octavo")
    with (
        serving(arguments, command=command) as served,
        prometheus(served.url.removeprefix("http://"), tmp_path) as client,
    ):
        assert served.post("/v1/completions", {"prompt": ["a", "b"], "max_tokens": 1}).status_code == 400
        wanted = dict.fromkeys(queries())
        missing = list(wanted)
        deadline_s = time.monotonic() + SCRAPED_S
        while missing and time.monotonic() < deadline_s:
            work(served)
            time.sleep(0.5)
            missing = [one for one in missing if not has_data(client, one[1])]
        # Nothing was turned away, nothing broke: those have no rows to show.
        quiet = {("Turned away", expr) for title, expr in wanted if title == "Turned away"}
        assert set(missing) <= quiet, missing
        rules = client.get("/api/v1/rules").json()["data"]["groups"][0]["rules"]
        assert {rule["health"] for rule in rules} == {"ok"}
        assert {rule["state"] for rule in rules} == {"inactive"}


def has_data(client: httpx.Client, expr: str) -> bool:
    answer = client.get("/api/v1/query", params={"query": expr})
    assert answer.status_code == 200, answer.text
    rows = answer.json()["data"]["result"]
    return bool(rows) and all(row["value"][1] != "NaN" for row in rows)
