"""Kernels with a choice of implementation per platform."""
