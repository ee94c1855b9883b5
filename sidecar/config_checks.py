"""Relations between nodes of the configuration.

They are checked on the plain tree, which may be wrong in any way, so that they are reported
together with the mistakes inside nodes instead of only after those are mended. A check says nothing
about nodes that are wrong by themselves.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, get_args

from sidecar.errors import Problem

_WILDCARDS = {"0.0.0.0", "[::]"}  # noqa: S104 - recognized, not bound


def relations(tree: dict[str, Any], *, roles: Any, addresses: dict[str, str]) -> list[Problem]:
    """Every contradiction between nodes.

    Args:
        tree: plain values.
        roles: the ``Literal`` of known roles.
        addresses: default addresses by their path under ``gateway`` (``grpc.address``).
    """
    problems: list[Problem] = []
    models = _dicts(tree.get("models"))
    problems += _twice(
        [(f"models[{index}].name", _text(model.get("name"))) for index, model in models],
        "another model is called {}",
    )
    for index, model in models:
        problems += _check_model(f"models[{index}]", model, set(get_args(roles)))
        if model.get("cache") is True and _at(tree, "gateway", "cache", "max_bytes") == 0:
            message = "is true, but gateway.cache.max_bytes is 0"
            problems.append(Problem(f"models[{index}].cache", message))
    problems += _check_addresses(tree, addresses)
    problems += _check_client_pair(_at(tree, "telemetry"))
    problems += _check_alerts(_at(tree, "alerts"))
    return problems


def _check_model(path: str, model: dict[str, Any], known_roles: set[str]) -> list[Problem]:
    variants = _dicts(model.get("variants"))
    problems = _twice(
        [
            (f"{path}.variants[{index}]", _key(_version(variant), _text(variant.get("name"))))
            for index, variant in variants
        ],
        "another variant is {}",
    )
    for index, variant in variants:
        repeated = [role for role, count in Counter(_roles(variant)).items() if count > 1]
        for role in repeated:
            problems.append(Problem(f"{path}.variants[{index}].roles", f"{role} is given twice"))
    everything_known = bool(variants) and all(
        _roles(variant) and set(_roles(variant)) <= known_roles for _, variant in variants
    )
    if everything_known:  # else "no variant is serving" may only repeat a misspelled role
        problems += _check_serving(path, model, variants)
        problems += _check_fallback(path, model, variants)
        problems += _check_candidates(path, variants)
        problems += _check_shares(path, model, variants)
        problems += _twice(
            [
                (f"{path}.variants[{index}].roles", _version(variant))
                for index, variant in variants
                if "reference" in _roles(variant)
            ],
            "another variant of version {} is the reference; there is one truth",
        )
    return problems


def _check_serving(
    path: str, model: dict[str, Any], variants: list[tuple[int, dict[str, Any]]]
) -> list[Problem]:
    serving = [(index, variant) for index, variant in variants if "serving" in _roles(variant)]
    if not serving:
        return [Problem(f"{path}.variants", "no variant has the role serving")]
    problems = _twice(
        [(f"{path}.variants[{index}].roles", _version(variant)) for index, variant in serving],
        "another variant of version {} is serving; one answers, the others can be mirror, "
        "reference or fallback",
    )
    default = model.get("default_version")
    versions = [_version(variant) for _, variant in serving]
    if default is not None and None not in versions and _version_text(default) not in versions:
        known = ", ".join(dict.fromkeys(version for version in versions if version is not None))
        message = f"no serving variant has version {default!r}; there is: {known}"
        problems.append(Problem(f"{path}.default_version", message))
    return problems


def _check_fallback(
    path: str, model: dict[str, Any], variants: list[tuple[int, dict[str, Any]]]
) -> list[Problem]:
    problems: list[Problem] = []
    fallbacks = [index for index, variant in variants if "fallback" in _roles(variant)]
    for index in fallbacks[1:]:
        message = "another variant is the fallback already; a model has one"
        problems.append(Problem(f"{path}.variants[{index}].roles", message))
    serving = [index for index, variant in variants if "serving" in _roles(variant)]
    if fallbacks and fallbacks == serving:
        message = "it is the only variant that serves; another one must be its fallback"
        problems.append(Problem(f"{path}.variants[{fallbacks[0]}].roles", message))
    if not fallbacks and _at(model, "fallback", "after_ms") is not None:
        message = "is set, but no variant has the role fallback"
        problems.append(Problem(f"{path}.fallback.after_ms", message))
    return problems


def _check_candidates(path: str, variants: list[tuple[int, dict[str, Any]]]) -> list[Problem]:
    problems: list[Problem] = []
    serving = {_version(variant) for _, variant in variants if "serving" in _roles(variant)}
    candidates = [(index, each) for index, each in variants if "candidate" in _roles(each)]
    for index, variant in candidates:
        where = f"{path}.variants[{index}].roles"
        also = [role for role in ("serving", "fallback", "previous") if role in _roles(variant)]
        version = _version(variant)
        if also:
            message = f"it is a candidate, which answers nobody, and {' and '.join(also)}: leave "
            problems.append(Problem(where, f"{message}one away"))
        elif version is not None and version in serving:
            message = f"version {version} serves already: a candidate is another version; for "
            message += "another form of this one take the role mirror"
            problems.append(Problem(where, message))
    return problems + _twice(
        [(f"{path}.variants[{index}].roles", _version(variant)) for index, variant in candidates],
        "another variant of version {} is the candidate; one is compared, and promoted",
    )


def _check_shares(
    path: str, model: dict[str, Any], variants: list[tuple[int, dict[str, Any]]]
) -> list[Problem]:
    shares = _at(model, "route", "shares")
    if not isinstance(shares, dict) or not shares:
        return []
    problems: list[Problem] = []
    where = f"{path}.route.shares"
    known = {_version(v) for _, v in variants if {"serving", "previous"} & set(_roles(v))}
    waiting = {_version(v) for _, v in variants if "candidate" in _roles(v)} - known
    for name in shares:
        version = _version_text(name)
        if version in waiting:
            message = "it is a candidate, which answers nobody until it is promoted: give it the "
            problems.append(Problem(f"{where}.{version}", f"{message}role serving, or no share"))
        elif version not in known:
            there = ", ".join(sorted(each for each in known if each is not None))
            message = f"no variant of this version serves or is the previous one; there is: {there}"
            problems.append(Problem(f"{where}.{version}", message))
    given = [share for share in shares.values() if isinstance(share, int | float)]
    if len(given) == len(shares) and not any(given):
        problems.append(Problem(where, "all are 0: then nobody would answer"))
    elif model.get("default_version") is not None:
        message = "is given beside route.shares, which says which version answers; leave one away"
        problems.append(Problem(f"{path}.default_version", message))
    return problems


def _check_addresses(tree: dict[str, Any], defaults: dict[str, str]) -> list[Problem]:
    problems: list[Problem] = []
    listeners: dict[str, str] = {}
    for name in ("grpc.address", "http.address", "health", "admin.address", "hooks"):
        address = _listener(tree, name, defaults)
        if not isinstance(address, str) or address.endswith(":0"):
            continue
        path = f"gateway.{name}"
        for other_path, other in listeners.items():
            if _overlap(address, other):
                also = "" if other == address else f" ({other})"
                problems.append(Problem(path, f"{address} is also {other_path}{also}"))
        listeners[path] = address
        workers = _at(tree, "gateway", "workers")
        shared = name != "hooks" and isinstance(workers, int) and workers > 1
        if address.startswith("unix:") and shared:
            message = "a unix socket has one owner: with gateway.workers above 1, write host:port"
            problems.append(Problem(path, message))
    taken = dict(listeners)
    for keys in (
        ("monitor", "grpc"),
        ("monitor", "http"),
        ("monitor", "health"),
        ("telemetry", "prometheus"),
    ):
        own, path = _at(tree, *keys), ".".join(keys)
        if isinstance(own, str) and not own.endswith(":0"):
            problems += [
                Problem(path, f"{own} is also {other_path}")
                for other_path, other in taken.items()
                if _overlap(own, other)
            ]
            taken[path] = own
    return problems + [
        Problem(path, f"{address} is {listener}: it would call itself")
        for path, address in _remotes(tree)
        for listener, own in listeners.items()
        if address == own
    ]


def _check_alerts(alerts: Any) -> list[Problem]:
    channels = _dicts(_at(alerts, "channels"))
    problems = _twice(
        [
            (f"alerts.channels[{index}]", _text(channel.get("name") or channel.get("kind")))
            for index, channel in channels
        ],
        "another channel is called {}; give it a name of its own",
    )
    problems += [
        Problem(f"alerts.channels[{index}].password", "is given, but no user")
        for index, channel in channels
        if channel.get("password") is not None and channel.get("user") is None
    ]
    first, last = _at(alerts, "first_retry_s"), _at(alerts, "last_retry_s")
    if isinstance(first, int | float) and isinstance(last, int | float) and first > last:
        message = f"is {last:g}, shorter than first_retry_s ({first:g})"
        problems.append(Problem("alerts.last_retry_s", message))
    return problems


def _check_client_pair(telemetry: Any) -> list[Problem]:
    given = {
        name for name in ("client_certificate", "client_key") if _at(telemetry, name) is not None
    }
    if len(given) != 1:
        return []
    (missing,) = {"client_certificate", "client_key"} - given
    (there,) = given
    return [Problem(f"telemetry.{missing}", f"is required, since {there} is given")]


def _listener(tree: dict[str, Any], name: str, defaults: dict[str, str]) -> Any:
    keys = name.split(".")
    holder: Any = tree.get("gateway", {})
    for key in keys[:-1]:
        if not isinstance(holder, dict) or (key in holder and not isinstance(holder[key], dict)):
            return None  # `http: null` is no listener
        holder = holder.get(key, {})
    return holder.get(keys[-1], defaults.get(name)) if isinstance(holder, dict) else None


def _overlap(one: str, other: str) -> bool:
    if one == other:
        return True
    (one_host, _, one_port), (other_host, _, other_port) = (
        one.rpartition(":"),
        other.rpartition(":"),
    )
    # Linux lets both listen (SO_REUSEPORT) and then gives a caller one of them by luck.
    is_wild = one_host in _WILDCARDS or other_host in _WILDCARDS
    return is_wild and one_port == other_port and "unix" not in {one_host, other_host}


def _remotes(tree: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        (f"models[{index}].variants[{place}].runtime.address", address)
        for index, model in _dicts(tree.get("models"))
        for place, variant in _dicts(model.get("variants"))
        if isinstance(address := _at(variant, "runtime", "address"), str)
    ]


# --- reading a tree that may be wrong -------------------------------------------------------------


def _dicts(value: Any) -> list[tuple[int, dict[str, Any]]]:
    items = value if isinstance(value, list) else []
    return [(index, item) for index, item in enumerate(items) if isinstance(item, dict)]


def _at(node: Any, *keys: str) -> Any:
    for key in keys:
        node = node.get(key) if isinstance(node, dict) else None
    return node


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _version(variant: dict[str, Any]) -> str | None:
    return _version_text(variant.get("version"))


def _version_text(value: Any) -> str | None:
    return str(value) if type(value) is int else _text(value)


def _key(version: str | None, name: str | None) -> str | None:
    return None if version is None or name is None else f"{version}/{name}"


def _roles(variant: dict[str, Any]) -> list[str]:
    roles = variant.get("roles")
    return [role for role in roles if isinstance(role, str)] if isinstance(roles, list) else []


def _twice(named: list[tuple[str, str | None]], message: str) -> list[Problem]:
    """One problem for each name but its first use."""
    seen: set[str] = set()
    problems = []
    for path, name in named:
        if name is not None and name in seen:
            problems.append(Problem(path, message.format(name)))
        if name is not None:
            seen.add(name)
    return problems
