"""Is the new version worse than the previous one? Checks, decisions, and what follows from them."""
