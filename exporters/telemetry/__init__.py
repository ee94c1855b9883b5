"""Telemetry: spans, metrics and log records, to an OTLP backend, Prometheus or the console.

::

    settings.py     what can be set        environment.py  the same, from OTEL_* variables
    context.py      W3C trace context      model.py        spans, points and records, plain
    hub.py          Telemetry: all of it   loghandler.py   from Python's logging
    line.py         queue and thread       metrics.py      readers, on a schedule
    delivery.py     attempts and back-off  encode.py       to the SDK's objects, OTLP and JSON
    otlp_grpc.py otlp_http.py console.py   one attempt each
    prometheus.py   text, and the endpoint

Importing this package, ``context``, ``model``, ``settings`` and ``environment`` loads no SDK; only
a ``Telemetry`` that exports something does.
"""

from exporters.telemetry.hub import Telemetry
from exporters.telemetry.settings import Backend, Bounds, Exporter, Override, Settings, Signal

__all__ = ["Backend", "Bounds", "Exporter", "Override", "Settings", "Signal", "Telemetry"]
