"""Experiments: `base.py` has every key, the other files change what differs."""
