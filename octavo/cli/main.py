"""`octavo COMMAND ...`: finds the command's file, runs it, and turns errors into exit codes.

Only the module of the command asked for is imported, so that help comes at once.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from octavo import __version__
from octavo.errors import ConfigError, KernelUnavailable, LoadError, OctavoError, RequestError

COMMANDS = {
    "serve": "the OpenAI-compatible server",
    "generate": "one prompt, or a file of them",
    "batch": "an OpenAI batch file, restartable",
    "chat": "talk in the terminal",
    "bench": "measure: latency, throughput, machine",
    "eval": "quality of a model on a task",
    "plan": "arithmetic before anything is loaded or bought: memory",
    "fit": "scaling laws from your own runs, with intervals and charts",
    "explain": "what happened in a recording, and why",
    "simulate": "rehearse a deployment under a virtual clock",
    "calibrate": "measure what steps take here, for the simulator",
    "models": "models that are here",
    "doctor": "what this machine has, what was chosen and why, with fixes",
    "keys": "make keys for a server's tenants, check the file of them",
    "config": "resolved settings and where they came from",
}

DONE, WRONG_ARGUMENTS, NOT_LOADED, FAILED, INTERRUPTED, UNREAD = 0, 2, 3, 4, 130, 141

_EPILOG = """exit codes: 0 done, 2 wrong arguments or configuration, 3 the model could not be loaded,
4 the work failed, 130 interrupted, 141 nobody reads the output. `octavo COMMAND --help` shows a command's flags."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns its exit code. Raises SystemExit only for --help, --version and usage."""
    args = list(sys.argv[1:] if argv is None else argv)
    chosen = args[0] if args and args[0] in COMMANDS else None
    if chosen is None:
        return _overview(args)
    module = importlib.import_module(f"octavo.cli.{chosen}")
    parser = argparse.ArgumentParser(
        prog=f"octavo {chosen}",
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    module.configure(parser)
    try:
        code: int = module.run(parser.parse_args(args[1:]))
        return code
    except (ConfigError, RequestError) as error:
        return _failed(error, WRONG_ARGUMENTS)
    except (LoadError, KernelUnavailable) as error:
        return _failed(error, NOT_LOADED)
    except OctavoError as error:
        return _failed(error, FAILED)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED


def run() -> NoReturn:
    """Entry point of the installed command."""
    try:
        try:
            code = main()
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read the output has gone. The signal that says so would also end a server whose client has.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = UNREAD
    sys.exit(code)


def _overview(args: Sequence[str]) -> int:
    """Help, the version, or what was meant instead; the last two leave by SystemExit."""
    width = max(map(len, COMMANDS))
    listing = "\n".join(f"  {name:{width}}  {text}" for name, text in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="octavo",
        usage="octavo COMMAND [MODEL] [FLAGS]",
        description=f"Serve, compress, plan, simulate and explain large language models.\n\ncommands:\n{listing}",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"octavo {__version__}")
    if not args:
        parser.print_help()
        return WRONG_ARGUMENTS
    _, unknown = parser.parse_known_args(args)
    wrong = unknown[0] if unknown else args[0]
    parser.print_usage(sys.stderr)
    print(f"octavo: unknown command {wrong!r}{_nearest(wrong)}", file=sys.stderr)
    return WRONG_ARGUMENTS


def _nearest(name: str) -> str:
    import difflib

    close = difflib.get_close_matches(name, COMMANDS, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _failed(error: OctavoError, code: int) -> int:
    print(f"octavo: {error} [{error.code}]", file=sys.stderr)
    return code
