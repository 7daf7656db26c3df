"""The command as a user types it: help, exit codes, speed of the first answer, JSON."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from octavo.cli import main as cli
from octavo.cli import output, progress
from octavo.errors import Bug, Busy, ConfigError, KernelUnavailable, LoadError, PromptTooLong

ROOT = Path(__file__).resolve().parents[2]


def octavo(*words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "octavo", *words],
        cwd=ROOT,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_help_lists_every_command_and_loads_none_of_them():
    code = (
        "import sys; from octavo.cli.main import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "print([m for m in sys.modules if m in ('torch','numpy','rich','msgspec','starlette','octavo.cli.serve')])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    for name in cli.COMMANDS:
        assert f"  {name} " in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_help_and_names_the_variables(name, capsys):
    with pytest.raises(SystemExit) as left:
        cli.main([name, "--help"])
    assert left.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: octavo {name}")
    if name not in ("models", "keys", "plan", "simulate", "fit", "explain"):
        assert "OCTAVO_NUM_THREADS" in text


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        ([], "commands:"),
        (["confg"], "did you mean 'config'"),
        (["--prot"], "unknown command '--prot'"),
        (["config", "--port", "x"], "--port"),
        (["config", "--unknown"], "unrecognized arguments"),
        (["config", "--port", "99999"], "port must be"),
        (["bench", "sleep"], "invalid choice"),
        (["bench", "machine", "--requests", "3"], "no use for --requests"),
        (["bench", "latency", "--prompt-tokens", "x"], "--prompt-tokens"),
        (["eval", "--task", "recall", "--depths", "0.5"], "belongs to --task needle"),
        (["eval"], "--task"),
        (["generate", "--output", "x"], "goes with --input"),
        (["generate", "--input", "x.jsonl"], "needs --output"),
        (["generate", "a", "b", "c"], "quotes"),
        (["generate", "--temperature", "-1", "hi"], "temperature"),
        (["chat", "--n", "2"], "one answer at a time"),
        (["chat", "--url", "http://127.0.0.1:1", "--dtype", "bf16"], "no effect with --url"),
        (["plan"], "KIND"),
        (["plan", "memry"], "invalid choice"),
        (["plan", "memory", "--device", "cuda"], "needs --memory-limit"),
        (["serve", "--quantization", "gptq"], "does not read it yet"),
    ],
)
def test_wrong_arguments_end_with_2_and_say_why(words, hint, capfd):
    try:
        code = cli.main(words)
    except SystemExit as left:
        code = left.code
    said = capfd.readouterr()
    assert code == 2
    assert hint in said.err + said.out


@pytest.mark.parametrize("words", [["serve", "/nowhere/at/all"], ["generate", "/nowhere/at/all", "hi"]])
def test_a_model_that_is_not_there_ends_with_3(words):
    done = octavo(*words)
    assert done.returncode == 3, done.stderr
    assert "/nowhere/at/all" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("x"), 2),
        (PromptTooLong("x"), 2),
        (LoadError("x"), 3),
        (KernelUnavailable("op", "need", []), 3),
        (Busy("x", retry_after_s=1), 4),
        (Bug("x"), 4),
        (KeyboardInterrupt(), 130),
    ],
)
def test_errors_become_exit_codes(error, code, monkeypatch, capsys):
    from octavo.cli import config

    def fail(_args: object) -> int:
        raise error

    monkeypatch.setattr(config, "run", fail)
    assert cli.main(["config"]) == code
    said = capsys.readouterr().err
    assert said
    assert isinstance(error, KeyboardInterrupt) or error.code in said


def test_config_says_where_values_come_from(monkeypatch, capsys):
    monkeypatch.setenv("OCTAVO_MAX_NUM_SEQS", "9")
    monkeypatch.setenv("OCTAVO_API_KEY", "a-very-secret-key")
    assert cli.main(["config", "--origin", "--json", "--block-size", "32"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["block_size"] == {"value": 32, "origin": "flag", "where": "--block-size"}
    assert found["max_num_seqs"] == {"value": 9, "origin": "variable", "where": "OCTAVO_MAX_NUM_SEQS"}
    assert found["port"]["origin"] == "default"
    assert cli.main(["config", "--origin"]) == 0
    text = capsys.readouterr().out
    assert "OCTAVO_MAX_NUM_SEQS" in text
    assert "secret" not in text + json.dumps(found)


def test_config_settles_what_is_open_and_says_why(capsys):
    assert cli.main(["config", "--resolve", "--json", "--max-num-seqs", "4"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["dtype"]["value"] == "bfloat16"
    assert found["max_model_len"] == {"value": "2048", "because": "positions the model was made for"}
    assert found["max_num_seqs"] == {"value": 4}
    assert cli.main(["config", "--resolve", "--origin"]) == 0
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split() == ["setting", "value", "origin", "because"]
    assert any("positions the model was made for" in row for row in rows)


def test_an_unknown_variable_is_an_error(monkeypatch, capsys):
    monkeypatch.setenv("OCTAVO_BLOK_SIZE", "9")
    assert cli.main(["config"]) == 2
    assert "did you mean 'OCTAVO_BLOCK_SIZE'" in capsys.readouterr().err


def test_plan_memory_needs_no_torch_and_adds_up():
    code = (
        "import sys; from octavo.cli.main import main; main(['plan', 'memory', '--json', '--memory-limit', '1GiB']);"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    parts = [plan[f"{name}_bytes"] for name in ("weight", "kv", "workspace", "recorder", "left")]
    assert sum(parts) == plan["limit_bytes"] == 2**30
    assert plan["kv_bytes"] == plan["num_kv_blocks"] * plan["kv_block_bytes"]


def test_models_lists_the_bundled_one(capsys):
    assert cli.main(["models", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["quire"]["origin"] == "bundled"
    assert rows["quire"]["problem"] is None
    assert cli.main(["models"]) == 0
    assert "quire" in capsys.readouterr().out


def test_a_table_is_aligned(capsys):
    output.print_table(["a", "count"], [["x", 1], ["long", 22]], right=[1])
    assert capsys.readouterr().out.splitlines() == ["a     count", "x         1", "long     22"]


def test_progress_is_a_json_line_now_and_then():
    now = iter([0.0, 1.0, 5.5, 5.5, 5.5, 6.0, 11.0, 11.0, 11.0])
    stream = io.StringIO()
    with progress.Progress("prompts", 4, stream=stream, clock=lambda: next(now)) as bar:
        for _ in range(4):
            bar.advance()
    rows = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [row["done"] for row in rows] == [2, 4]
    assert rows[0] == {"progress": "prompts", "done": 2, "total": 4, "elapsed_s": 5.5}


def test_progress_is_a_bar_on_a_terminal():
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    with progress.Progress("prompts", 2, stream=stream, clock=time.monotonic) as bar:
        bar.advance(2)
    assert "prompts" in stream.getvalue()
    assert "{" not in stream.getvalue()


def test_output_that_nobody_reads_ends_quietly() -> None:
    command = subprocess.Popen(
        [sys.executable, "-m", "octavo", "plan", "memory", "qwen3-0.6b"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert command.stdout is not None
    assert command.stderr is not None
    command.stdout.close()
    assert command.stderr.read() == b""
    assert command.wait(60) == cli.UNREAD


def test_a_client_that_has_gone_ends_no_command() -> None:
    """A closed socket is an error to be handled, not a signal that ends the process."""
    code = """
import socket
from octavo.cli import main as cli
ours, theirs = socket.socketpair()
theirs.close()
def command():
    try:
        ours.send(b"x")
    except BrokenPipeError:
        return 7
cli.main = command
cli.run()
"""
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60).returncode == 7
