"""The figures of docs/benchmarks.md: ratios of two things measured in one run, alternated."""
