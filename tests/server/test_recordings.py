"""What a server saves of itself: on a signal, on the operator's word, and after a crash; without anybody's text."""

from __future__ import annotations

import concurrent.futures
import gzip
import os
import signal
import stat
import time
from pathlib import Path

import httpx
import pytest

from octavo.errors import LoadError
from octavo.obs import recording
from octavo.obs.flight import Committed, Departed, Planned, Served, Submitted
from octavo.obs.replay import replay
from tests.server.process import Served as Server
from tests.server.process import serving
from tests.server.test_end_to_end import REAL
from tests.server.test_faults import children

SECRET = "the quick brown fox jumps over the lazy dog"
SMALL = ("--num-kv-blocks", "256", "--num-threads", "1")
ADMIN_KEY = "a-key-for-the-operator"


def saved(folder: Path, count: int = 1, within_s: float = 60.0) -> list[Path]:
    """The files there, once there are so many."""
    deadline_s = time.monotonic() + within_s
    while len(found := list((folder / "recordings").glob("*.recording"))) < count:
        assert time.monotonic() < deadline_s, list(folder.rglob("*"))
        time.sleep(0.05)
    return sorted(found, key=lambda one: one.stat().st_mtime)


def ask(server: Server, prompt: str = SECRET, **fields: object) -> httpx.Response:
    return server.post("/v1/completions", {"prompt": prompt, "max_tokens": 6, "temperature": 0, **fields})


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """The bundled model behind a server with a folder of its own."""
    folder = tmp_path_factory.mktemp("data")
    with serving(["--data-dir", str(folder), "--max-num-seqs", "8", *SMALL], REAL) as served:
        yield served, folder


def test_a_signal_saves_what_happened_and_it_can_be_played_again(real):
    server, folder = real
    for number in range(3):
        assert ask(server, SECRET + " " * number).status_code == 200
    answer = ask(server, stream=True)
    before = len(list((folder / "recordings").glob("*"))) if (folder / "recordings").exists() else 0
    os.kill(server.process.pid, signal.SIGUSR2)
    path = saved(folder, before + 1)[-1]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    found = recording.read(path)
    assert (found.saved.why, found.saved.model) == ("a signal asked for it", "quire")
    assert found.saved.settings["max_num_seqs"] == "8"
    requests = [entry for entry in found.front if isinstance(entry, Served)]
    assert requests[-1].request_id == answer.headers["x-request-id"]
    assert [entry.ended for entry in requests[-4:]] == [None] * 4
    (engine,) = found.engines
    assert engine.opened is not None
    assert engine.opened.is_whole
    submitted = {entry.request_id for entry in engine.entries if isinstance(entry, Submitted)}
    assert {prompt for entry in requests for prompt in entry.prompts} <= submitted
    steps = replay(engine.entries)
    assert len(steps) == sum(isinstance(entry, Planned) and entry.number >= 0 for entry in engine.entries)
    for entry in requests:
        marks = (
            entry.received_s,
            entry.posted_s,
            entry.accepted_s,
            entry.first_s,
            entry.last_s,
            entry.sent_s,
        )
        assert list(marks) == sorted(marks)
    ran = [entry for entry in engine.entries if isinstance(entry, Committed)]
    assert all(entry.launched_s < entry.ended_s <= entry.now_s for entry in ran)


def test_no_text_and_no_token_is_in_it(real):
    server, folder = real
    assert ask(server, logprobs=1, stop=["a stop text of mine"]).status_code == 200
    before = len(list((folder / "recordings").glob("*.recording")))
    os.kill(server.process.pid, signal.SIGUSR2)
    path = saved(folder, before + 1)[-1]
    plain = gzip.decompress(path.read_bytes()[len(recording.MAGIC) :])
    tokens = server.post("/tokenize", {"prompt": SECRET}).json()["tokens"]
    assert b"quick" not in plain
    assert b"stop text" not in plain
    as_names = b"".join(token.to_bytes(4, "little") for token in tokens[:3])
    assert as_names not in plain


def test_the_operator_gets_the_path(folder, tmp_path):
    socket = str(tmp_path / "admin.sock")
    arguments = [str(folder), "--data-dir", str(tmp_path), "--admin-socket", socket, "--admin-key", ADMIN_KEY]
    with serving([*arguments, "--max-recordings", "2"]) as server:
        assert ask(server).status_code == 200
        with httpx.Client(
            transport=httpx.HTTPTransport(uds=socket), headers={"authorization": f"Bearer {ADMIN_KEY}"}
        ) as operator:
            made = [operator.post("http://admin/admin/recording").json() for _ in range(4)]
        kept = saved(tmp_path, 2)
        assert [str(one) for one in kept] == [one["path"] for one in made[-2:]], "the latest two are kept"
        assert kept[-1].stat().st_size == made[-1]["bytes"]
        found = recording.read(kept[-1])
        assert [type(entry) for entry in found.front] == [Served]
        assert found.engines[0].entries == [], "the fake engine writes nothing"


def test_a_crash_is_saved_with_what_led_to_it(tmp_path):
    with serving(["--data-dir", str(tmp_path), *SMALL], REAL) as server:
        assert ask(server).status_code == 200
        (pid,) = children(server.process.pid)
        os.kill(pid, signal.SIGKILL)
        found = recording.read(saved(tmp_path)[0])
        assert found.saved.why.startswith("engine 0 the engine process was ended by SIGKILL")
        (gone,) = (entry for entry in found.front if isinstance(entry, Departed))
        assert (gone.engine, gone.epoch, gone.num_aboard) == (0, 0, 0)
        (engine,) = found.engines
        assert engine.epoch == 0
        assert len(replay(engine.entries)) > 0
        server.until(lambda health: health["status"] == "ready")


def test_engines_of_a_server_have_the_same_names_for_the_same_tokens(tmp_path):
    flags = ["--data-dir", str(tmp_path), *SMALL, "--engines", "2", "--routing", "least_loaded"]
    with serving(flags, REAL) as server:
        server.until(lambda health: all(one["status"] == "ready" for one in health["engines"]))
        with concurrent.futures.ThreadPoolExecutor(4) as clients:
            asked = [clients.submit(ask, server, max_tokens=60, ignore_eos=True) for _ in range(4)]
            assert {one.result().status_code for one in asked} == {200}
        os.kill(server.process.pid, signal.SIGUSR2)
        found = recording.read(saved(tmp_path)[0])
    names = []
    for engine in found.engines:
        names.append({one.names for one in engine.entries if isinstance(one, Submitted)})
    assert [len(one) for one in names] == [1, 1]
    assert names[0] == names[1]


def test_what_is_no_recording_is_refused(tmp_path):
    path = tmp_path / "a.recording"
    for content, what in (
        (b"", "is no recording"),
        (b"something else", "is no recording"),
        (recording.MAGIC, "does not begin"),
        (recording.MAGIC + b"\x1f\x8b" + bytes(20), "cannot be read"),
    ):
        path.write_bytes(content)
        with pytest.raises(LoadError, match=what):
            recording.read(path)
    with pytest.raises(LoadError, match="cannot be read"):
        recording.read(tmp_path / "missing")
