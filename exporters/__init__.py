"""What leaves the process: telemetry, alerts, reports."""
