"""The steps of `helm/Dockerfile`: puts model-sidecar into an environment of its own.

    build.py libraries --to /opt/model-sidecar [--variant base] [--extras drift,apprise]
    build.py sidecar --to /opt/model-sidecar

Two steps, since libraries change less often than the code: each is a layer of the build. They
need Python 3.11 with pip and `venv`, and nothing of the project but what the Dockerfile copies.
The same interpreter must lie at the same place in the image: the environment links to it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CONSTRAINTS = ROOT / "constraints.txt"

#: What both containers need, whatever the configuration says: the monitor and its store, telemetry,
#: the actions on Kubernetes, the store that replicas share, the faster HTTP parser.
ALWAYS = ("monitor", "otel", "kubernetes", "postgres", "http-fast")
#: Extras of pyproject.toml that a variant has beside those.
VARIANTS = {"base": (), "torch": ("pytorch",), "gpu": ("tensorrt-rtx",)}
#: Extras that are for people's own machines.
NOT_HERE = {"dev", "demo"}
#: ONNX Runtime for CUDA brings the same modules as the one for the CPU, and takes its place. Its
#: extras are NVIDIA's libraries; the driver is the node's.
GPU_RUNTIME = "onnxruntime-gpu[cuda,cudnn]>=1.20"

#: Packages that are asked for and never imported. The client of Kubernetes has a second form, an
#: asynchronous one, of 42 MB and with an HTTP library of its own.
UNUSED_PACKAGES = (
    "aiohttp", "aiohttp-retry", "aiosignal", "aiohappyeyeballs", "frozenlist", "propcache", "yarl",
)  # fmt: skip
#: Files, under site-packages, that nothing imports while it serves.
UNUSED_FILES = (
    "kubernetes/aio",  # the asynchronous form
    "**/numpy/**/tests",
    "**/numpy/tests",
    "pandas/tests",
    "scipy/**/tests",
    "sklearn/**/tests",
    "statsmodels/**/tests",
    "websocket/tests",
    "pyarrow/tests",
    "pyarrow/include",  # headers
    "pyarrow/libarrow_flight*",  # a protocol of its own; only Parquet is read and written here
    "pyarrow/libarrow_python_flight*",
    "pyarrow/_flight*",
    "pyarrow/libarrow_s3*",
    "pyarrow/_s3fs*",
    "pyarrow/libarrow_python.so",  # twice more what is loaded as libarrow_python.so.N
    "pyarrow/libarrow_python.so.*.*",
    "torch/include",  # headers: for compiling, which an image without a compiler does not
    "torch/share/cmake",
    "torch/test",
    "**/*.pyx",
    "**/*.pxd",
    "**/*.pxi",
)
#: Thousands of classes of which one is used: they stay, and are not compiled beforehand.
NOT_COMPILED = r"kubernetes/client/(api|models)/(?!__init__|custom_objects)"
#: Commands that stay; the others are the libraries' own.
COMMANDS = {"python", "python3", "python3.11", "sidecar"}


def main() -> None:
    """Run one step."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("step", choices=("libraries", "sidecar"))
    parser.add_argument("--to", type=Path, required=True, help="the environment")
    parser.add_argument("--variant", default="base", choices=tuple(VARIANTS))
    parser.add_argument("--extras", default="", help="of pyproject.toml, comma between them")
    arguments = parser.parse_args()
    target: Path = arguments.to
    if arguments.step == "libraries":
        extras = [extra for extra in arguments.extras.split(",") if extra]
        libraries(target, requirements(arguments.variant, extras), arguments.variant)
    else:
        ours(target)
    date(target)


def requirements(variant: str, extras: list[str]) -> list[str]:
    """What is installed, as pip writes it.

    Raises:
        SystemExit: an extra is unknown, or not for an image.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    offered: dict[str, list[str]] = project["optional-dependencies"]
    wrong = [extra for extra in extras if extra not in offered or extra in NOT_HERE]
    if wrong:
        known = ", ".join(sorted(set(offered) - NOT_HERE))
        raise SystemExit(f"build.py: no such extra for an image: {', '.join(wrong)} (of {known})")
    found = [*project["dependencies"]]
    for extra in (*ALWAYS, *VARIANTS[variant], *extras):
        found += offered[extra]
    if variant == "gpu":
        found = [GPU_RUNTIME if line.startswith("onnxruntime>") else line for line in found]
    return list(dict.fromkeys(found))


def libraries(target: Path, wanted: list[str], variant: str) -> None:
    """Make the environment and install everything but ourselves."""
    # Without pip: what serves installs nothing.
    run(sys.executable, "-m", "venv", "--without-pip", "--clear", str(target))
    for script in (target / "bin").glob("[Aa]ctivate*"):
        script.unlink()
    if variant != "gpu":
        refuse_cuda(target, wanted)
    # Only wheels: an image is built without a compiler, and without running what a source
    # distribution brings.
    pip(target, "install", "--no-compile", "--only-binary", ":all:", *wanted)
    pip(target, "uninstall", "--yes", *UNUSED_PACKAGES)
    packages = site_packages(target)
    for pattern in UNUSED_FILES:
        for path in sorted(packages.glob(pattern)):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    only_our_commands(target)
    # Some libraries carry files for other versions of Python (torch: 3.12); those do not compile.
    compile_all(target, packages, "-x", NOT_COMPILED, must_succeed=False)


def refuse_cuda(target: Path, wanted: list[str]) -> None:
    """Before gigabytes come: torch's ordinary build for Linux brings CUDA's libraries.

    Raises:
        SystemExit: it would.
    """
    if not any(line.startswith("torch") for line in wanted):
        return
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        pip(target, "install", "--dry-run", "--only-binary", ":all:", "--report", str(report),
            *wanted)  # fmt: skip
        text = report.read_text(encoding="utf-8")
    if '"name": "nvidia-' in text:
        raise SystemExit(
            "build.py: this torch would bring CUDA's libraries. Name the index of PyTorch's CPU "
            "builds as extra-index-url in the pip.conf that is given as secret `pip.conf` "
            "(docs/deploy.md), or take VARIANT=gpu"
        )


def ours(target: Path) -> None:
    """Make the wheel of this project and install it, without asking for anything more."""
    with tempfile.TemporaryDirectory() as folder:
        pip(target, "wheel", "--no-deps", "--wheel-dir", folder, str(ROOT))
        # By name, not by path: pip would write the path down, and a build would not be repeatable.
        pip(target, "install", "--no-compile", "--no-deps", "--no-index", "--find-links", folder,
            "--force-reinstall", "model-sidecar")  # fmt: skip
    only_our_commands(target)
    packages = site_packages(target)
    for name in ("sidecar", "validators", "exporters"):
        compile_all(target, packages / name)


def only_our_commands(target: Path) -> None:
    for path in (target / "bin").iterdir():
        if path.name not in COMMANDS:
            path.unlink()


def compile_all(target: Path, folder: Path, *options: str, must_succeed: bool = True) -> None:
    """Compile beforehand: the file system is read-only where it runs.

    Unchecked hashes: a file's time is then no part of it, and nothing is compared at start-up.
    """
    command = [
        str(target / "bin" / "python"), "-m", "compileall", "-qq", "-j", "0",
        "--invalidation-mode", "unchecked-hash", *options, str(folder),
    ]  # fmt: skip
    subprocess.run(command, check=must_succeed)


def date(target: Path) -> None:
    """Give every file the time of the source, where it is said, so that a build can be repeated."""
    seconds = os.environ.get("SOURCE_DATE_EPOCH")
    if seconds:
        for path in everything(target):
            os.utime(path, (int(seconds), int(seconds)), follow_symlinks=False)


def everything(folder: Path) -> Iterator[Path]:
    yield from folder.rglob("*")
    yield folder


def site_packages(target: Path) -> Path:
    return target / "lib" / f"python3.{sys.version_info.minor}" / "site-packages"


def pip(target: Path, *arguments: str) -> None:
    # The second name is for newer pips: it also pins what our own wheel is built with.
    pinned = {"PIP_CONSTRAINT": str(CONSTRAINTS), "PIP_BUILD_CONSTRAINT": str(CONSTRAINTS)}
    run(sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "--no-input",
        "--python", str(target / "bin" / "python"), *arguments, **pinned)  # fmt: skip


def run(*command: str, **environment: str) -> None:
    subprocess.run(command, check=True, env={**os.environ, **environment})


if __name__ == "__main__":
    main()
