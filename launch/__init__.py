"""The commands, a file each. Installed they are `nvae_jax.commands`, a link to this folder."""
