"""Build hook: generates the protobuf modules, for wheels and editable installs alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


def generate(root: Path) -> list[Path]:
    """Write ``sidecar/protocol/pb/*_pb2.py(i)`` from ``proto/*.proto``; return what was written."""
    from grpc_tools import protoc

    out = root / "sidecar" / "protocol" / "pb"
    out.mkdir(parents=True, exist_ok=True)
    sources = sorted((root / "proto").glob("*.proto"))
    arguments = [
        "protoc",
        # The mapping makes the generated imports absolute: from sidecar.protocol.pb import …
        f"-Isidecar/protocol/pb={root / 'proto'}",
        f"--python_out={root}",
        f"--pyi_out={root}",
        *(f"sidecar/protocol/pb/{source.name}" for source in sources),
    ]
    if protoc.main(arguments) != 0:
        message = f"protoc failed: {' '.join(arguments)}"
        raise RuntimeError(message)
    return [out / f"{source.stem}_pb2.py" for source in sources]


class ProtobufHook(BuildHookInterface):  # type: ignore[type-arg]
    """Called by hatchling before it collects the files of a build."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Generate the code; ``version`` is ``standard`` or ``editable``."""
        del version
        for written in generate(Path(self.root)):
            for path in (written, written.with_suffix(".pyi")):
                relative = path.relative_to(self.root)
                build_data["force_include"][str(path)] = str(relative)
