"""The tests. They are a package, because an installed package named `tests` would otherwise come
first."""
