"""Rules of this tree that no linter knows."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib.metadata import packages_distributions, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import exporters
import sidecar
import validators
from sidecar.runtimes import BUILTIN

ROOT = Path(__file__).parents[1]
OURS = ("sidecar", "validators", "exporters")
FUNCTION_LINES_MAX = 70
FILE_LINES_MAX = 400
TEST_FILE_LINES_MAX = 600
SLEEP_S_MAX = 0.05

#: What sleeps in a server that is called, not in a test.
SLEEPERS = {"tests/peers/mlserver_models.py": "a model that hangs"}
#: Who else may name the environment, and why.
ENVIRONMENT = {
    "sidecar/launching.py": "hands it on to the workers, unread",
    "sidecar/cli/watch.py": "keeps gRPC's notes off the screen, which only a variable can",
    "sidecar/monitor/deep/child.py": "turns the library's telemetry off, likewise",
    "sidecar/runtimes/onnxrt.py": "turns the library's telemetry off, which only a variable can",
}


@cache
def tree() -> tuple[Path, ...]:
    """Every file of the project, ignored ones aside."""
    found = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if found.returncode != 0:  # an unpacked archive has no repository
        return tuple(
            path
            for path in ROOT.rglob("*")
            if path.is_file()
            and "__pycache__" not in path.parts
            and not any(part.startswith(".") for part in path.relative_to(ROOT).parts[:-1])
            and "_pb2" not in path.name
        )
    names = {name for name in found.stdout.split("\0") if name}
    return tuple(ROOT / name for name in sorted(names) if (ROOT / name).is_file())


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def python(*folders: str) -> Iterator[tuple[str, ast.Module]]:
    for path in tree():
        if path.suffix == ".py" and name(path).split("/")[0] in folders:
            yield name(path), ast.parse(path.read_text(encoding="utf-8"))


def dotted(node: ast.expr) -> str:
    """``os.environ`` of the expression that says so; else an empty text."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


# --- size and names -------------------------------------------------------------------------------


def test_functions_fit_on_a_screen():
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    too_long = [
        f"{path}:{node.lineno} {node.name}: {node.end_lineno - node.lineno + 1} lines"
        for path, module in python(*OURS)
        for node in ast.walk(module)
        if isinstance(node, kinds) and node.end_lineno - node.lineno >= FUNCTION_LINES_MAX
    ]
    assert too_long == []


def test_files_can_be_read_in_one_go():
    too_long = []
    for path, _ in python(*OURS, "tests", "proto"):
        count = len((ROOT / path).read_text(encoding="utf-8").splitlines())
        if count > (TEST_FILE_LINES_MAX if path.startswith("tests/") else FILE_LINES_MAX):
            too_long.append(f"{path}: {count} lines")
    assert too_long == []


def test_no_module_hides_one_it_could_be_taken_for():
    confusing = {"torch.py", "onnx.py", "queue.py", "grpc.py", "tensorrt.py", "numpy.py"}
    assert [name(path) for path in tree() if path.name in confusing] == []


def test_every_module_says_what_it_is_for():
    silent = [
        path
        for path, module in python(*OURS)
        if (module.body and not ast.get_docstring(module))
        or (not module.body and not path.endswith("__init__.py"))
    ]  # fmt: skip
    assert silent == []


def test_every_folder_of_tests_is_a_package():
    folders = {
        path.parent for path in tree() if name(path).startswith("tests/") and path.suffix == ".py"
    }
    assert [name(f) for f in sorted(folders) if not (f / "__init__.py").exists()] == []


# --- what only one place may do -------------------------------------------------------------------


def test_only_the_configuration_reads_the_environment():
    readers = {
        path
        for path, module in python(*OURS)
        for node in ast.walk(module)
        if (isinstance(node, ast.Attribute) and dotted(node) in {"os.environ", "os.getenv"})
        or (
            isinstance(node, ast.ImportFrom)
            and node.module == "os"
            and {"environ", "getenv"} & {alias.name for alias in node.names}
        )
    }
    assert readers - set(ENVIRONMENT) == {"sidecar/config.py"}


def test_only_the_command_line_ends_the_process():
    enders = {
        path
        for path, module in python(*OURS)
        for node in ast.walk(module)
        if (isinstance(node, ast.Call) and dotted(node.func) in {"sys.exit", "exit", "quit"})
        or (
            isinstance(node, ast.Raise)
            and node.exc is not None
            and "SystemExit" in ast.dump(node.exc)
        )
    }
    assert enders == {"sidecar/cli/__init__.py"}


def test_tests_do_not_sleep():
    sleepers = [
        f"{path}:{node.lineno}"
        for path, module in python("tests")
        for node in ast.walk(module)
        if path not in SLEEPERS
        and isinstance(node, ast.Call)
        and dotted(node.func) in {"time.sleep", "sleep", "asyncio.sleep"}
        and isinstance(node.args[0], ast.Constant)
        and node.args[0].value > SLEEP_S_MAX
    ]
    assert sleepers == [], "poll with a deadline, or inject the clock"


def test_imports_go_in_one_direction():
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout


# --- what must not be found in the tree -----------------------------------------------------------

# Written in pieces, so that this file does not hold what it looks for.
HOSTS = {
    "org": ["pypi", "pythonhosted", "download.pytorch", "anaconda", "npmjs", "proxy.golang"],
    "com": ["pypi.nvidia", "npmjs"],
    "io": ["conda", "docker", "ghcr", "nvcr", "quay", "crates"],
    "co": ["huggingface"],
}
PLACES = [r"(?<![\w.])/" + r"work/", r"(?<![\w.])/" + r"tmp/w\b", r"(?<![\w.])/" + r"root/"]


def test_no_registry_and_no_machine_is_named():
    hosts = [rf"\b{re.escape(f'{host}.{end}')}\b" for end in HOSTS for host in HOSTS[end]]
    pattern = re.compile("|".join([*hosts, *PLACES]))
    found = []
    for path in tree():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # an image or an artifact
        found += [
            f"{name(path)}:{number}: {match.group()}"
            for number, line in enumerate(text.splitlines(), 1)
            if (match := pattern.search(line))
        ]
    assert found == []


# --- packages -------------------------------------------------------------------------------------


def test_nobody_else_owns_our_names():
    owners = packages_distributions()
    assert {owner for ours in OURS for owner in owners.get(ours, [])} <= {"model-sidecar"}
    for package in (sidecar, validators, exporters):
        assert Path(package.__file__).parents[1] == ROOT


def test_the_package_alone_is_imported_from_any_folder(tmp_path):
    code = "import sidecar, validators, exporters; print(sidecar.__file__)"
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert Path(found.stdout.strip()).parents[1] == ROOT


@pytest.mark.parametrize("module", sorted({"sidecar.runtimes", *BUILTIN.values()}))
def test_a_runtime_brings_only_its_own_library(module):
    allowed = {"sidecar.runtimes.onnxrt": "onnxruntime", "sidecar.runtimes.pytorch": "torch"}
    heavy = {"torch", "onnxruntime", "onnx", "tensorrt", "tensorrt_rtx", "sklearn"}
    code = f"import sys, {module}; print(*{heavy!r} & set(sys.modules))"
    command = [sys.executable, "-c", code]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert set(found.stdout.split()) <= {allowed.get(module, "")}


def test_the_supervisor_starts_without_what_workers_need():
    code = (
        "import sys\n"
        "from sidecar.cli import run\n"
        "code = run(['serve', 'no-such-file.yaml'])\n"
        "heavy = {'grpc', 'onnxruntime', 'torch', 'numpy', 'typer', 'rich', 'starlette'}\n"
        "print(code, *heavy & set(sys.modules))"
    )
    command = [sys.executable, "-c", code]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["2"]


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    exact = [line.split("==") for line in lines if "==" in line and not line.startswith("#")]
    names = [canonicalize_name(name) for name, _ in exact]
    assert len(names) == len(set(names)), "a package is pinned twice"
    return {canonicalize_name(name): pinned for name, pinned in exact}


def test_everything_that_is_asked_for_is_pinned_and_is_what_is_installed():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    asked = [
        Requirement(line)
        for line in [*project["dependencies"], *extras["dev"], *extras["drift"]]
        if not line.startswith("model-sidecar")
    ]
    pinned = pins()
    assert [str(r) for r in asked if canonicalize_name(r.name) not in pinned] == []
    assert [
        str(r) for r in asked if not r.specifier.contains(pinned[canonicalize_name(r.name)])
    ] == []
    differing = []
    for line in (*project["dependencies"], *extras["dev"], *extras["demo"]):
        wanted = canonicalize_name(Requirement(line).name)
        # A local version (torch's 2.13.0+cpu) is a build of the pinned one.
        if wanted in pinned and version(wanted).split("+")[0] != pinned[wanted]:
            differing.append(f"{wanted} {version(wanted)}, pinned {pinned[wanted]}")
    assert differing == []


# --- documents ------------------------------------------------------------------------------------

LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def anchors(text: str) -> set[str]:
    """The anchors of a page: explicit ones, and those made of its headings."""
    headings = re.findall(r"^#+ +(.+)$", text, re.MULTILINE)
    made = {
        re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings
    }
    return made | set(re.findall(r'<a id="([^"]+)">', text))


def test_links_within_the_project_lead_somewhere():
    broken = []
    for path in tree():
        if path.suffix != ".md":
            continue
        for target in LINK.findall(path.read_text(encoding="utf-8")):
            if re.match(r"[a-z]+:", target):
                continue
            file, _, anchor = target.partition("#")
            page = (path.parent / file).resolve() if file else path
            if not page.exists() or (anchor and anchor not in anchors(page.read_text("utf-8"))):
                broken.append(f"{name(path)}: {target}")
    assert broken == []


def test_the_scripts_of_the_build_are_well_formed():
    run = ROOT / ".ci" / "run"
    assert run.stat().st_mode & 0o111, "not executable"
    subprocess.run(["bash", "-n", str(run)], check=True)
    subprocess.run(["make", "-n", "help", "demo", "test", "bench"], cwd=ROOT, check=True,
                   capture_output=True)  # fmt: skip
