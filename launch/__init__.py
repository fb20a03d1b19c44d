"""The commands, one per file. `nvae_jax.commands` is a link to this folder."""
