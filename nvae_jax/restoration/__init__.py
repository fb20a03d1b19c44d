"""Restoration: what images could have been of which only a part is known, without training."""
