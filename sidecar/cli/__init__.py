"""The command line: arguments, messages, exit codes. The only place that ends the process.

Exit codes: 0 fine; 1 it failed; 2 wrong arguments or a wrong configuration; 130 interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import NoReturn

from sidecar.errors import ConfigError, SidecarError

OK, FAILED, WRONG_USE, INTERRUPTED = 0, 1, 2, 130

#: Commands of one path and no options start without the machinery of the others: typer and rich
#: take longer to import than the supervisor needs altogether. ``app.py`` offers them as well, with
#: their help.
_DIRECT = {
    "serve": "sidecar.cli.serve",
    "gateway": "sidecar.cli.gateway",
    "drain": "sidecar.cli.drain",
}


def main() -> NoReturn:
    """Run ``sidecar`` with the process's arguments."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command; return the exit code.

    Args:
        arguments: without the program's name. ``--debug`` may stand anywhere.
    """
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        if len(arguments) == 2 and arguments[0] in _DIRECT and not arguments[1].startswith("-"):
            return int(import_module(_DIRECT[arguments[0]]).run(Path(arguments[1])))
        from sidecar.cli.app import run_app

        return run_app(arguments)
    except SidecarError as error:
        if debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        return WRONG_USE if isinstance(error, ConfigError) else FAILED
    except KeyboardInterrupt:
        if debug:
            raise
        return INTERRUPTED
