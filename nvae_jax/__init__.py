"""NVAE, a deep hierarchical VAE (Vahdat & Kautz, NeurIPS 2020), in JAX and Flax."""

__version__ = "0.1.0"
