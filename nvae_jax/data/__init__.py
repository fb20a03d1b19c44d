"""Data sets, their formats and the input pipeline."""
