"""Alerts: what is said, and the channels it is said over, one file each."""
