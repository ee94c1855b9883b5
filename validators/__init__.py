"""Pure statistics and comparison: arrays and counts in, verdicts out."""
