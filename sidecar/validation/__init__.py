"""Offline validation: variants run on the same inputs, compared, judged, reported."""
