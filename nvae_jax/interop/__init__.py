"""Reads and writes checkpoints of the published PyTorch code."""
