"""Selective-layer training with DeepSpeed in Ray Train workers."""
