"""The route table: which version answers requests that name none; a file that outlives everybody.

Only the monitor writes it (``monitor/route_side.py``), whole, by an atomic rename; every gateway
worker reads it, also where there is no monitor, so that a restart never undoes a rollback. Nothing
heavy is imported here: a worker has neither a database nor pydantic, and its configuration may be
the plain one (``config_plain``).

The file, JSON::

    {"format": 1, "models": {"digits": {
        "revision": 3, "shares": {"2": 0.9, "3": 0.1}, "by": "operator", "reason": "…",
        "changed_wall_ns": 1, "since": {…}, "shared": true}}}

``since`` is the monitor's: what had been counted when these shares began. ``shared``: the route is
that of all replicas (``monitor.store``), not of this pod alone.
"""

from __future__ import annotations

import json
import logging
import math
import os
import stat
from bisect import bisect_right
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sidecar.config import ModelConfig, VariantConfig

logger = logging.getLogger(__name__)

NAME = "routes.json"
FORMAT = 1
#: A table of a thousand models with what was counted stays far below; more is not read at all.
MAX_BYTES = 4 * 2**20
_TEXT_MAX = 2000
_INT64 = 2**63
#: Shares that are meant to sum to 1 were divided by their sum, which rounds.
_ROUNDING = 1e-6
_POINTS = float(2**64)

#: What answers for a version, in this order where several variants could.
_ANSWER_ROLES = ("serving", "previous", "candidate")


@dataclass(frozen=True, slots=True)
class Route:
    """One model's route, as it was set.

    Attributes:
        revision: grows by one with each change, from 1.
        shares: version → share, each above 0; they sum to 1.
        by: who set it, ``reason``: why.
        since: for the monitor: what had been counted when it was set.
        shared: it lies in the replicas' database as well.
    """

    revision: int
    shares: Mapping[str, float]
    by: str
    reason: str
    changed_wall_ns: int
    since: Mapping[str, Any] = field(default_factory=dict)
    shared: bool = False


Routes = Mapping[str, Route]


class DamagedError(ValueError):
    """What lies there is no route table; says why."""


# --- the file's contents --------------------------------------------------------------------------


def parse(data: bytes) -> dict[str, Route]:
    """Read a table.

    Raises:
        DamagedError: it is none: cut off, of another format, with a share that cannot be.
    """
    try:
        tree = json.loads(data)
    except (ValueError, RecursionError):
        message = "it is no JSON"
        raise DamagedError(message) from None
    if not isinstance(tree, dict) or not isinstance(tree.get("models"), dict):
        message = "it is no table of routes"
        raise DamagedError(message)
    if tree.get("format") != FORMAT:
        message = f"it is of format {tree.get('format')!r:.40}, and {FORMAT} is read here"
        raise DamagedError(message)
    return {name: from_plain(name, item) for name, item in tree["models"].items()}


def from_plain(name: str, item: Any) -> Route:
    """The inverse of ``to_plain``; ``DamagedError``: it is none, of model ``name``."""
    if isinstance(item, dict):
        revision, shares = item.get("revision"), item.get("shares")
        by, reason, since = item.get("by"), item.get("reason"), item.get("since", {})
        changed = item.get("changed_wall_ns")
        if (
            type(revision) is int
            and 0 < revision < _INT64
            and isinstance(shares, dict)
            and _are_shares(shares.values())
            and isinstance(by, str)
            and isinstance(reason, str)
            and type(changed) is int
            and 0 <= changed < _INT64
            and isinstance(since, dict)
        ):
            return Route(
                revision, shares, by[:_TEXT_MAX], reason[:_TEXT_MAX], changed, since,
                item.get("shared") is True,
            )  # fmt: skip
    message = f"what it says of model {name!r:.80} is no route"
    raise DamagedError(message)


def _are_shares(values: Collection[Any]) -> bool:
    return (
        all(type(each) in {int, float} and 0 < each <= 1 for each in values)
        and abs(math.fsum(values) - 1) < _ROUNDING
    )


def to_plain(route: Route) -> dict[str, Any]:
    """One model's route as JSON values."""
    plain = {
        "revision": route.revision, "shares": dict(route.shares), "by": route.by,
        "reason": route.reason, "changed_wall_ns": route.changed_wall_ns,
        "since": dict(route.since),
    }  # fmt: skip
    return {**plain, "shared": True} if route.shared else plain


def dump(routes: Routes) -> bytes:
    """The other way; ``DamagedError`` where it would be too large to be read."""
    models = {name: to_plain(route) for name, route in routes.items()}
    data = json.dumps({"format": FORMAT, "models": models}, indent=1).encode()
    if len(data) > MAX_BYTES:
        message = f"it would take {len(data)} bytes, over the {MAX_BYTES} that are read"
        raise DamagedError(message)
    return data


def read(path: Path) -> bytes | None:
    """The file's bytes; ``None``: there is none.

    Raises:
        DamagedError: it is no ordinary file, or too large. OSError: it cannot be read.
    """
    try:
        # Whatever else lies there (a pipe, say) must not make the reader wait.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            message = "it is no file"
            raise DamagedError(message)
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        message = f"it is over {MAX_BYTES} bytes"
        raise DamagedError(message)
    return data


class RouteFile:
    """The file, for who follows it: read again when it has changed.

    Attributes:
        routes: the last good table.
        damaged: how many times something else was found; ``problem``: what, empty once it is good.
        is_there: a good table has been read, be it an empty one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.routes: Routes = {}
        self.damaged = 0
        self.problem = ""
        self.is_there = False
        self._seen: tuple[int, ...] | None = None

    def poll(self) -> bool:
        """Look; whether ``routes`` is another table now. Costs a ``stat`` while nothing changes."""
        try:
            found = os.stat(self.path)  # noqa: PTH116 - as cheap as it gets, five times a second
            seen: tuple[int, ...] = found.st_ino, found.st_mtime_ns, found.st_size
        except FileNotFoundError:
            seen = ()
        except OSError as error:
            seen = (-(error.errno or 1),)
        if seen == self._seen:
            return False
        first, self._seen = self._seen is None, seen
        if not seen:
            if not first:
                self._say("it is gone")
            return False
        try:
            data = read(self.path)
            if data is None:
                self._seen = None if first else ()
                return False
            routes = parse(data)
        except (DamagedError, OSError) as error:
            why = error.strerror or "" if isinstance(error, OSError) else str(error)
            self._say(why)
            return False
        self.problem, self.is_there = "", True
        changed = routes != self.routes
        self.routes = routes
        return changed

    def _say(self, why: str) -> None:
        self.damaged += 1
        self.problem = f"the route table {self.path} cannot be followed: {why}"
        logger.error("%s; the routes that were there last stand", self.problem)


# --- a model's versions ---------------------------------------------------------------------------


def answering(model: ModelConfig) -> dict[str, VariantConfig]:
    """Version → the variant that answers for it where the route says so, in the config's order.

    One that serves goes before a previous one, and that before a candidate; of several of a kind
    the first, except that of those that serve there is one.
    """
    found: dict[str, VariantConfig] = {}
    for role in _ANSWER_ROLES:
        for variant in model.variants:
            if role in variant.roles:
                found.setdefault(variant.version, variant)
    order = {variant.version: None for variant in model.variants if variant.version in found}
    return {version: found[version] for version in order}


def candidates(model: ModelConfig) -> list[str]:
    """Versions that answer nobody until the route gives them a share."""
    return [v for v, variant in answering(model).items() if "candidate" in variant.roles]


def configured(model: ModelConfig) -> dict[str, float]:
    """The shares that the configuration gives; nothing where no variant serves."""
    shares = {version: share for version, share in model.route.shares.items() if share > 0}
    if shares:
        return normal(shares)
    serving = [variant.version for variant in model.variants if "serving" in variant.roles]
    return {model.default_version or serving[-1]: 1.0} if serving else {}


def normal(weights: Mapping[str, float]) -> dict[str, float]:
    """Weights as shares that sum to 1, without those that are 0."""
    total = math.fsum(weights.values())
    return {version: weight / total for version, weight in weights.items() if weight > 0}


def resolve(
    route: Route | None, fallback: Mapping[str, float], there: Collection[str]
) -> tuple[dict[str, float], str]:
    """The shares that can be followed, and what had to be left out.

    Args:
        route: as it was set; ``None``: never.
        fallback: the configured shares.
        there: the versions of which there is a copy.

    Returns:
        Shares over ``there`` (empty when none of the versions is there), and a sentence, empty when
        everything is as it was set.
    """
    wanted = fallback if route is None else route.shares
    shares = {version: share for version, share in wanted.items() if version in there}
    if len(shares) == len(wanted):
        return dict(shares), ""
    gone = ", ".join(version for version in wanted if version not in there)
    if shares:
        return normal(shares), f"there is no version {gone} here: its share goes to the others"
    if route is None:
        return {}, f"there is no version {gone} here"
    shares, _ = resolve(None, fallback, there)
    text = f"there is no version {gone} here, to which everything is routed: as configured instead"
    return shares, text


def words(shares: Mapping[str, float]) -> str:
    """``2=0.9 3=0.1``."""
    return " ".join(f"{version}={share:g}" for version, share in shares.items())


# --- who gets which -------------------------------------------------------------------------------


class Split:
    """Shares as stretches of [0, 1), laid out in the order given.

    A point stays with its version while shares change, except in the stretches that move: with two
    versions these are exactly as long as the change.
    """

    __slots__ = ("_ends", "_versions")

    def __init__(self, shares: Mapping[str, float], order: Iterable[str]) -> None:
        self._versions: Sequence[str] = [version for version in order if version in shares]
        # The last stretch has no end: a sum that is rounded down must not leave a gap.
        self._ends = list(accumulate(shares[version] for version in self._versions))[:-1]

    def pick(self, point: float) -> str:
        """The version of a point in [0, 1)."""
        return self._versions[bisect_right(self._ends, point)]


def point_of(value: bytes, model: str) -> float:
    """Where a sticky value lies in [0, 1): the same in every process, and another in each model."""
    digest = blake2b(value, digest_size=8, person=blake2b(model.encode(), digest_size=16).digest())
    # Not below 1 by itself: of 64 bits the last ones are rounded away.
    return min(int.from_bytes(digest.digest()) / _POINTS, 1 - 2**-53)
