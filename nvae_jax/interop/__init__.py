"""Reading and writing checkpoints of other implementations."""
