"""Metrics of sample quality: features of images, their statistics, and distances between them."""
