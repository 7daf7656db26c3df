"""The container files, as far as they can be read without a container engine."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from octavo.config import KNOBS, ServerConfig
from octavo.units import parse_seconds
from tests.server.process import serving

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"


def instructions() -> list[tuple[str, str]]:
    """(instruction, rest) of the Dockerfile, continued lines joined."""
    text = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    text = re.sub(r"^#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ")
    lines = [line.split(None, 1) for line in text.splitlines() if line.strip()]
    return [(name, " ".join(rest.split())) for name, rest in lines]


def compose() -> dict:
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))


def test_the_image_runs_as_nobody_in_particular_with_a_health_check():
    last = instructions()[max(i for i, (name, _) in enumerate(instructions()) if name == "FROM") :]
    names = dict(last)
    assert names["USER"] == "10001"
    assert names["ENTRYPOINT"] == '["octavo"]'
    assert "HEALTHCHECK" in names
    assert names["STOPSIGNAL"] == "SIGTERM"


def test_what_is_copied_is_there_and_what_the_build_needs_is_copied():
    root = DEPLOY.parent
    sources = [
        part
        for name, rest in instructions()
        if name == "COPY" and "--from" not in rest
        for part in rest.split()[:-1]
    ]
    assert all((root / source).exists() for source in sources), sources
    assert {"pyproject.toml", "CMakeLists.txt", "csrc", "octavo", "LICENSE", "README.md"} == set(sources)


def test_variables_set_in_it_are_settings():
    known = {knob.variable for knob in KNOBS}
    text = (DEPLOY / "Dockerfile").read_text(encoding="utf-8") + (DEPLOY / "compose.yaml").read_text(
        encoding="utf-8"
    )
    used = set(re.findall(r"\bOCTAVO_[A-Z_]+(?=[=:](?!-))", text))
    assert used
    assert used <= known, used - known


def test_the_health_check_tells_ready_from_not(folder):
    rest = dict(instructions())["HEALTHCHECK"]
    words = re.search(r"CMD (\[.*\])", rest)
    assert words is not None
    command = yaml.safe_load(words[1])
    with serving([str(folder)]) as served:
        port = served.url.rpartition(":")[2]
        assert subprocess.run(command, env={"OCTAVO_PORT": port, "PATH": _path()}, timeout=20).returncode == 0
        served.process.terminate()
        served.process.wait(20)
        failed = subprocess.run(
            command, env={"OCTAVO_PORT": port, "PATH": _path()}, timeout=20, capture_output=True
        )
        assert failed.returncode != 0


def _path() -> str:
    import sys

    return str(Path(sys.executable).parent)


def test_compose_mounts_what_is_there_and_waits_longer_than_a_drain():
    services = compose()["services"]
    mounted = [volume.split(":")[0] for service in services.values() for volume in service.get("volumes", ())]
    for path in mounted:
        if path.startswith("./"):
            assert (DEPLOY / path).exists(), path
    assert parse_seconds(services["octavo"]["stop_grace_period"]) > ServerConfig().drain_s + 2
    assert all(
        port.startswith("127.0.0.1:") for service in services.values() for port in service.get("ports", ())
    )
    assert services["octavo"]["command"][0] == "serve"


def test_provisioning_names_the_datasource_of_the_dashboard():
    source = yaml.safe_load((DEPLOY / "grafana/provisioning/datasources/prometheus.yaml").read_text())
    assert source["datasources"][0]["uid"] == "prometheus"
    assert '"uid": "prometheus"' in (DEPLOY / "grafana/dashboards/octavo.json").read_text()


@pytest.mark.skipif(shutil.which("docker") is None, reason="no docker client")
def test_docker_compose_reads_it():
    version = subprocess.run(["docker", "compose", "version"], capture_output=True, timeout=30)
    if version.returncode != 0:
        pytest.skip("the docker client has no compose plugin")
    command = ["docker", "compose", "-f", str(DEPLOY / "compose.yaml"), "config", "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
