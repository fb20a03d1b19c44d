"""The network: towers, latent groups, cells, layers and flows. Modules never see a config."""
