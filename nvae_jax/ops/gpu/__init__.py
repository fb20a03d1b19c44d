"""Kernels for a single NVIDIA GPU, in Pallas by its Triton lowering.

Written for what a step on a GPU is bound by: passes over memory, and the number of kernels.
"""
