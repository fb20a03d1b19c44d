"""The network: towers, latent groups, cells, layers and flows. Modules take hyperparameters only."""
