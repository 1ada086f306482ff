"""Sweeps: trials times pruning plans, scheduled by Ray Tune, and their table."""
