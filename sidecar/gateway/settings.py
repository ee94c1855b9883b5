"""The trace and log settings that clients may read and change at run time (Triton's two calls)."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from sidecar.errors import InvalidRequestError, UnsupportedError

if TYPE_CHECKING:
    from sidecar.config import LogConfig, TraceConfig

Settings = dict[str, list[str]]

#: ``str.isdigit`` takes "²", and ``int`` refuses thousands of digits.
_INTEGER = re.compile(r"-?[0-9]{1,18}")
_LEVELS = ("OFF", "TIMESTAMPS", "TENSORS")


class TraceSettings:
    """Which requests are traced: level, rate, count; globally, and for a model apart.

    The level ``TIMESTAMPS`` is what is offered: the times of each stage. Tensors are never traced.
    """

    def __init__(self, config: TraceConfig, models: list[str]) -> None:
        self._file = str(config.file) if config.file is not None else ""
        self._models = models
        self._global: Settings = {
            "trace_level": ["TIMESTAMPS" if config.file is not None else "OFF"],
            "trace_rate": ["1000"],
            "trace_count": ["-1"],
            "log_frequency": ["0"],
            "trace_file": [self._file],
            "trace_mode": ["triton"],
        }
        self._defaults = dict(self._global)
        self._of_model: dict[str, Settings] = {}

    def get(self, model: str = "") -> Settings:
        """The settings in force for a model; ``""``: the global ones."""
        if model and model not in self._models:
            text = f"unknown model '{model}'"
            raise InvalidRequestError(text)
        return {**self._global, **self._of_model.get(model, {})}

    def prepare(self, settings: Mapping[str, list[str]], model: str) -> Callable[[], None]:
        """Check a change; an empty value puts a setting back to what it was at start.

        Returns:
            What carries the change out.
        """
        self.get(model)
        for name, value in settings.items():
            self._check(name, value)

        def commit() -> None:
            for name, value in settings.items():
                if model:
                    own = dict(self._of_model.get(model, {}))
                    own.pop(name, None)
                    self._of_model[model] = {**own, name: value} if value else own
                else:
                    self._global = {**self._global, name: value or self._defaults[name]}

        return commit

    def _check(self, name: str, value: list[str]) -> None:
        if name not in self._global:
            known = ", ".join(self._global)
            text = f"unknown trace setting '{name}'; known are: {known}"
            raise InvalidRequestError(text)
        if name in ("trace_file", "trace_mode"):
            text = f"'{name}' is set in the server's configuration, not over the network"
            raise UnsupportedError(text)
        if not value:
            return
        if name == "trace_level":
            for level in value:
                if level not in _LEVELS:
                    text = f"unknown trace level '{level}'; known are: OFF, TIMESTAMPS"
                    raise InvalidRequestError(text)
                if level == "TENSORS":
                    text = "tensors are never traced here; use the level TIMESTAMPS"
                    raise UnsupportedError(text)
            return
        low = {"trace_rate": 1, "trace_count": -1, "log_frequency": 0}[name]
        if len(value) != 1 or not _INTEGER.fullmatch(value[0]) or int(value[0]) < low:
            text = f"trace setting '{name}' is one whole number of at least {low}, not {value}"
            raise InvalidRequestError(text)


class LogSettings:
    """The log settings of Triton's call, over Python's logging."""

    def __init__(self, config: LogConfig) -> None:
        level = config.level
        self._values: dict[str, Any] = {
            "log_file": "",
            "log_info": level in ("debug", "info"),
            "log_warning": level != "error",
            "log_error": True,
            "log_verbose_level": 1 if level == "debug" else 0,
            "log_format": "default" if config.format == "text" else "json",
        }

    def get(self) -> dict[str, Any]:
        """The settings in force."""
        return dict(self._values)

    def prepare(self, settings: Mapping[str, Any]) -> Callable[[], None]:
        """Check a change; return what carries it out."""
        for name, value in settings.items():
            if name not in self._values:
                known = ", ".join(self._values)
                text = f"unknown log setting '{name}'; known are: {known}"
                raise InvalidRequestError(text)
            if name in ("log_file", "log_format"):
                text = f"'{name}' is set in the server's configuration, not over the network"
                raise UnsupportedError(text)
            expected = int if name == "log_verbose_level" else bool
            if type(value) is not expected:
                text = f"log setting '{name}' is a {expected.__name__}, not {value!r}"
                raise InvalidRequestError(text)

        def commit() -> None:
            self._values = {**self._values, **settings}
            logging.getLogger("sidecar").setLevel(self._level())

        return commit

    def _level(self) -> int:
        values = self._values
        if values["log_verbose_level"] > 0:
            return logging.DEBUG
        for name, level in (
            ("log_info", logging.INFO),
            ("log_warning", logging.WARNING),
            ("log_error", logging.ERROR),
        ):
            if values[name]:
                return level
        return logging.CRITICAL
