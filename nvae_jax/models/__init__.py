"""The network: towers, latent groups, cells, layers, flows. Modules take hyperparameters only."""
