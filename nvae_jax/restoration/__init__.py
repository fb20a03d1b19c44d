"""Restoration: samples of complete images given the known part of each, without training."""
