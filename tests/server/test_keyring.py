"""The file of keys: what it says, and how it says what is wrong."""

from __future__ import annotations

import hashlib
import json

import pytest

from octavo.cli import main as cli
from octavo.errors import ConfigError
from octavo.server import keyring
from octavo.server.tenants import PUBLIC, Tenant


def written(tmp_path, text: str) -> str:
    path = tmp_path / "keys.toml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def tenant_row(name: str, *keys: str, more: str = "") -> str:
    digests = json.dumps([f"sha256:{hashlib.sha256(key.encode()).hexdigest()}" for key in keys])
    return f'[[tenant]]\nid = "{name}"\nkeys = {digests}\n{more}\n'


def test_without_keys_everybody_is_the_public():
    assert keyring.read(None).tenant("whatever") is PUBLIC


def test_a_key_of_the_command_line_is_a_tenant_of_its_own():
    read = keyring.read(None, ["first-key", "second-key"])
    assert read.tenant("first-key") == Tenant.of_key("first-key")
    assert read.tenant("first-key").namespace != read.tenant("second-key").namespace
    assert read.tenant("third-key") is None
    assert read.tenant("") is None


def test_all_keys_of_a_tenant_are_it(tmp_path):
    read = keyring.read(written(tmp_path, tenant_row("a", "key-1", "key-2") + tenant_row("b", "key-3")))
    assert read.tenant("key-1") == read.tenant("key-2")
    assert read.tenant("key-1").tenant_id == "a"
    assert read.tenant("key-3").tenant_id == "b"
    assert read.tenant("key-1").namespace != read.tenant("key-3").namespace
    assert read.tenant("key-4") is None


def test_what_a_tenant_does_not_say_the_common_limits_say(tmp_path):
    text = "[limits]\nrequests_per_minute = 60\nmax_concurrency = 4\n" + tenant_row(
        "a", "key-1", more="max_concurrency = 9\nshare = 2\ndeadline_ms = 1500"
    )
    read = keyring.read(written(tmp_path, text), ["from-the-command-line"])
    terms = read.tenant("key-1").terms
    assert (terms.requests_per_minute, terms.max_concurrency, terms.share) == (60, 9, 2.0)
    assert (terms.tokens_per_minute, terms.deadline_s, terms.priority) == (None, 1.5, 0)
    other = read.tenant("from-the-command-line").terms
    assert (other.requests_per_minute, other.max_concurrency, other.share) == (60, 4, 1.0)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[[tenant]]\nid = 'a'\nkeys = ['the-key-itself']", "the-key-itself"),
        ("[[tenant]]\nid = 'a'\nkeys = []", "no key in it"),
        ("", "no key in it"),
        ("[[tenant]]\nkeys = []", "id"),
        ("[[tenant]]\nid = 'a/batch'\nkeys = []", "id"),
        (tenant_row("a", "k") + tenant_row("a", "l"), "another tenant 'a'"),
        (tenant_row("a", "k") + tenant_row("b", "k"), "twice"),
        (tenant_row("a", "k", more="share = 0"), "share"),
        (tenant_row("a", "k", more="requests_per_minute = 0"), "requests_per_minute"),
        (tenant_row("a", "k", more="request_per_minute = 5"), "request_per_minute"),
        ("[limits]\nid = 'x'\n" + tenant_row("a", "k"), "id"),
        ("[limit]\n" + tenant_row("a", "k"), "limit"),
        ("[[public_prefix]]\ntext = 'a'\nsystem = 'b'\n" + tenant_row("a", "k"), "either text or system"),
        ("tenant = [", "keys.toml"),
    ],
)
def test_a_wrong_file_is_refused_by_its_place_and_no_key_is_shown(tmp_path, text, says):
    with pytest.raises(ConfigError) as refused:
        keyring.read(written(tmp_path, text))
    assert "keys.toml" in str(refused.value)
    if says == "the-key-itself":
        assert says not in str(refused.value)
        assert "octavo keys new" in str(refused.value)
    else:
        assert says in str(refused.value)


def test_a_missing_file_is_named():
    with pytest.raises(ConfigError, match=r"/nowhere/keys\.toml"):
        keyring.read("/nowhere/keys.toml")


def test_the_command_makes_keys_that_its_file_knows(tmp_path, capsys):
    assert cli.main(["keys", "new", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    path = written(
        tmp_path, f"[[tenant]]\nid = 'team'\nkeys = ['{made['digest']}']\ntokens_per_minute = 500\n"
    )
    read = keyring.read(path)
    assert read.tenant(made["key"]).tenant_id == "team"
    assert cli.main(["keys", "check", path]) == 0
    shown = capsys.readouterr().out
    assert "team" in shown
    assert "tokens_per_minute 500" in shown
    assert made["key"] not in shown
    assert cli.main(["keys", "check", path, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["team"]["keys"] == 1
    assert cli.main(["keys", "check"]) == 2
    assert cli.main(["keys", "new"]) == 0
    assert "sha256:" in capsys.readouterr().out
