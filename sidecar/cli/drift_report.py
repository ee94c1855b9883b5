"""``sidecar drift --open``: a deep drift run now, and its page in the browser.

The page lies on the monitor's machine. Where that is another one (a pod, say) the page comes with
the answer and is saved here.
"""

from __future__ import annotations

import re
import tempfile
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sidecar.monitor.client import MonitorClient
    from sidecar.monitor.deep.view import DeepReport

FINE, NO_REPORT = 0, 1
#: The default time limit of a run, once for one that goes before it, and what ending takes.
WAIT_S = 660.0
#: Whom Python takes where there is no screen.
_FOR_TERMINALS = frozenset({"www-browser", "links", "elinks", "lynx", "w3m"})


def open_report(
    client: MonitorClient, model: str = "", *, browser: bool = True, wait_s: float = WAIT_S
) -> int:
    """Ask for a run with a page, say what came of it and where it lies, and open it.

    Returns the exit code: 0 when there is a report, drifted or not.

    Args:
        model: empty: the only one that has deep runs.
        browser: open the page, where a graphical browser is found.
        wait_s: for the answer; runs have a limit of their own (``drift.deep.timeout_s``).

    Raises:
        MonitorCallError: no answer, no such model, or too many ask at once.
    """
    report, page = client.drift_report(model, html=True, send=True, timeout_s=wait_s)
    if report.summary:
        print(f"{report.model}: {report.summary}")
    if report.message:
        print(f"{report.model}: {report.message}")
    if not report.path_json:
        return NO_REPORT
    place = _page_here(report, page)
    if place is None:
        away = " (on the monitor's machine)"
        for path in filter(None, (report.path_html, report.path_json)):
            print(f"report: {path}{'' if Path(path).exists() else away}")
        return FINE
    print(f"report: {place}")
    if browser and not _opened(place):
        print("no graphical browser was found here; open that file in one")
    return FINE


def _page_here(report: DeepReport, page: bytes) -> Path | None:
    """A file of this machine with the page; ``None``: there is none to be had."""
    if not report.path_html:
        return None
    path = Path(report.path_html)
    try:
        # The same path may be another file here: what came is compared.
        if path.is_file() and (not page or path.read_bytes() == page):
            return path
    except OSError:
        pass  # another user's: what came is saved instead
    if not page:
        return None
    name = re.sub(r"[^A-Za-z0-9._-]", "_", report.model)
    # Not in a folder of everyone's under a name that can be foreseen.
    with tempfile.NamedTemporaryFile(prefix=f"drift-{name}-", suffix=".html", delete=False) as file:
        file.write(page)
    return Path(file.name)


def _opened(path: Path) -> bool:
    """Whether a browser with a window took it: one for the terminal would take that over."""
    try:
        found = webbrowser.get()
    except webbrowser.Error:
        return False
    if Path(getattr(found, "name", "")).name in _FOR_TERMINALS:
        return False
    return found.open(path.absolute().as_uri())
