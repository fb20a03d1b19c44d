"""How good samples are: features of images, their statistics, and distances between them."""
