"""Plans training on devices that this machine does not have: memory, operations, communication."""
