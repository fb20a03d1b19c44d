"""For tools that look for it; all is in pyproject.toml."""

from setuptools import setup

setup()
