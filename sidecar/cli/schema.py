"""``sidecar schema``: the configuration's JSON Schema."""

from __future__ import annotations

import json


def run() -> int:
    """Print the schema; return the exit code."""
    from sidecar.config import json_schema

    print(json.dumps(json_schema(), indent=2))
    return 0
