"""A container without an engine: namespaces, a root of its own, read-only, another user.

What a process sees is what the image holds and what is mounted: the base's `/usr` and interpreter
(this machine's), the environment that the image's steps have made, the volumes. It is process 1, as
uid 65532, without capabilities, and can write to the volumes and to `/tmp` alone. The network is
this machine's. Needs root.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

UID = 65532
#: What a base image has, and no more of this machine.
_SYSTEM = ("usr", "bin", "sbin", "lib", "lib64")
_FILES = ("ld.so.cache", "nsswitch.conf", "hosts", "localtime", "ssl")


@dataclass(frozen=True)
class Container:
    """What containers of one image and pod have in common.

    Attributes:
        root: an empty folder, where each container's root is put together.
        environment: what the image's steps have made, mounted where it was made.
        variables: of the image.
        passwd: lines that the image adds to `/etc/passwd`.
        volumes: folders on this machine by where they are mounted.
        writable: which of them can be written.
    """

    root: Path
    environment: Path
    variables: Mapping[str, str]
    passwd: str
    volumes: Mapping[str, Path]
    writable: Sequence[str] = ()
    interpreter: Path = field(default_factory=lambda: Path(sys.base_prefix))

    def command(self, *command: str) -> list[str]:
        """``command`` in a container, for ``subprocess``."""
        inner = [
            "setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups", "--no-new-privs",
            "--bounding-set=-all", "--inh-caps=-all",
            "env", "-i", *(f"{name}={value}" for name, value in self.variables.items()), *command,
        ]  # fmt: skip
        script = "\n".join(
            [
                "set -e",
                *self._mounts(),
                f"exec chroot {shlex.quote(str(self.root))} {shlex.join(inner)}",
            ]
        )
        return [
            "unshare", "--mount", "--pid", "--fork", "--kill-child=SIGKILL",
            "--propagation=private", "sh", "-c", script,
        ]  # fmt: skip

    def run(self, *command: str, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        return subprocess.run(
            self.command(*command), capture_output=True, text=True, check=False, timeout=timeout_s
        )

    def _mounts(self) -> list[str]:
        root = self.root
        lines = [f"mount -t tmpfs -o mode=755 root {root}"]
        for name in _SYSTEM:
            source = Path("/", name)
            if source.is_symlink():
                lines.append(f"ln -s {source.readlink()} {root / name}")
            elif source.is_dir():
                lines += self._bind(source, f"/{name}")
        lines += [f"mkdir -p {root}/etc {root}/proc {root}/dev {root}/tmp"]
        lines += [f"cp -rL /etc/{name} {root}/etc/{name} || true" for name in _FILES]
        lines += [
            f"printf %s {shlex.quote('root:x:0:0:root:/root:/bin/sh' + chr(10) + self.passwd)}"
            f" > {root}/etc/passwd",
            f"mount -t proc proc {root}/proc",
            f"mount -t tmpfs -o mode=1777 tmp {root}/tmp",
            f"mkdir -p {root}/dev/shm",
            f"mount -t tmpfs -o mode=1777 shm {root}/dev/shm",
        ]
        for name in ("null", "zero", "random", "urandom"):
            lines += [f"touch {root}/dev/{name}", f"mount --bind /dev/{name} {root}/dev/{name}"]
        lines += self._bind(self.interpreter, str(self.interpreter))
        lines += self._bind(self.environment, str(self.environment))
        for where, folder in self.volumes.items():
            lines += self._bind(folder, where, can_write=where in self.writable)
        # Last: the root itself.
        return [*lines, f"mount -o remount,ro,bind {root}"]

    def _bind(self, source: Path, where: str, *, can_write: bool = False) -> list[str]:
        target = f"{self.root}{where}"
        lines = [f"mkdir -p {target}", f"mount --bind {source} {target}"]
        return lines if can_write else [*lines, f"mount -o remount,ro,bind {target}"]


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    """The instructions of a Dockerfile, each with what follows it; without comments."""
    lines = [
        line
        for line in dockerfile.read_text(encoding="utf-8").splitlines()
        if line.strip() and not line.lstrip().startswith("#")
    ]
    joined = "\n".join(lines).replace("\\\n", " ").splitlines()
    split = [line.strip().partition(" ") for line in joined]
    return [(word.upper(), " ".join(rest.split())) for word, _, rest in split]


def stages(dockerfile: Path) -> list[list[tuple[str, str]]]:
    """The same, by stage; what stands before the first FROM is left out."""
    found: list[list[tuple[str, str]]] = []
    for word, rest in instructions(dockerfile):
        if word == "FROM":
            found.append([])
        if found:
            found[-1].append((word, rest))
    return found


def words(text: str) -> list[str]:
    """What an instruction in the form of a list, or in words, says."""
    if not text.startswith("["):
        return shlex.split(text)
    parsed: list[str] = json.loads(text)
    return parsed
