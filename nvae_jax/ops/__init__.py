"""What runs where: `interface` says what there is, `choice` who gets which."""
