"""Generated from ``proto/`` at build time; see ``proto/hatch_build.py``."""
