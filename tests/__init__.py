"""The tests; a package, as installed ones of this name would come first otherwise."""
