"""A production monitoring and validation sidecar for deployed models."""

__version__ = "0.1.0"
