"""Distributions over latents and pixels, one small file each."""
