"""Keys of a server's tenants.

    octavo keys new                    a key, and the digest of it for the file
    octavo keys check keys.toml        who may call, and on what terms
    octavo serve --keys keys.toml

The file holds digests only; a key that is lost cannot be had again, make another. SIGHUP to the server or
POST /admin/reload_keys reads the file anew.
"""

from __future__ import annotations

import argparse
import dataclasses
import json

from octavo.cli import output
from octavo.errors import ConfigError
from octavo.server import keyring


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", choices=("new", "check"), help="make a key, or read a file of them")
    parser.add_argument("file", nargs="?", metavar="FILE", help="the TOML file to check")
    output.add_json(parser)


def run(args: argparse.Namespace) -> int:
    if args.what == "new":
        key, digest = keyring.new_key()
        if args.json:
            print(json.dumps({"key": key, "digest": digest}))
            return 0
        print(f"key     {key}      give it to the tenant; it is shown this once")
        print(f"digest  {digest}      put it into the tenant's keys")
        return 0
    read = keyring.read(args.file)
    if not read:
        raise ConfigError("which file? octavo keys check FILE")
    terms = {name: dataclasses.asdict(tenant.terms) for name, tenant in sorted(read.tenants.items())}
    counts = {name: sum(one.tenant_id == name for _, one in read.digests) for name in terms}
    if args.json:
        print(json.dumps({name: {"keys": counts[name], **terms[name]} for name in terms}))
        return 0
    for name, values in terms.items():
        told = ", ".join(f"{key} {value:g}" for key, value in values.items() if value not in (None, False))
        state = " SUSPENDED" if values["is_suspended"] else ""
        print(f"{name:20} {counts[name]} keys{state}: {told}")
    return 0
