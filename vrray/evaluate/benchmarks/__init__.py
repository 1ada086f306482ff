"""Official benchmarks: readers of their files, and scorers that agree with their own scripts."""
