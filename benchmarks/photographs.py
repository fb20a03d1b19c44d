"""Makes a data set of patches of photographs from free packages, for `restoration.py`.

pip install scikit-image scikit-learn
python benchmarks/photographs.py --out=DATA [--packages=FOLDER]

The training photographs are wallpapers and jigsaw puzzles from packages of Debian 12, which are
downloaded with `apt-get download` and unpacked, but not installed; their licences, from CC0 to
GPL-2+, are in the packages. The test photographs are sample images of scikit-image (astronaut:
NASA, public domain; chelsea and coffee: CC0; rocket: SpaceX, CC0) and scikit-learn (china and
flower: CC BY 2.0). No photograph is in both sets.

Writes DATA/train.npz (patches at random places, of photographs reduced to several sizes, rotated
and mirrored) and DATA/test.npz (unchanged patches, spread evenly over each photograph).
"""

import subprocess
from pathlib import Path

import numpy as np
import skimage.data
import sklearn.datasets
from absl import flags
from PIL import Image

from nvae_jax import cli

OUT = flags.DEFINE_string("out", None, "folder for the data set", required=True)
PACKAGES = flags.DEFINE_string("packages", None, "folder for unpacked packages; default: OUT")
NUM = flags.DEFINE_integer("num", 100_000, "number of training patches", 1)
SIZE = flags.DEFINE_integer("size", 16, "height and width of a patch", 8)
PER_PHOTOGRAPH = flags.DEFINE_integer("test_per_photograph", 8, "test patches per photograph", 1)

TRAIN = {
    "lomiri-wallpapers-16.04": "Bridge_* Dragonfly_* Picture_* Wine_* aitzgorri_* free_* friends_* "
    "greentock_* life_* picosdeeuropa_* seeding_* sunset_*",
    "lomiri-wallpapers-20.04": "Kleiber_*",
    "mate-backgrounds": "Aqua.* Blinds.* Dune.* FreshFlower.* Garden.* GreenMeadow.* LadyBird.* "
    "RainDrops.* Storm.* TwoWings.* Wood.* YellowFlower.*",
    "palapeli-data": "castle-* cincinnati-* citrus-* european-* panther-*.jpg",
    "plasma-workspace-wallpapers": "BytheWater ColdRipple ColorfulCups EveningGlow FallenLeaf Grey "
    "Kite OneStandsOut Path",
}
LONG_SIDES = (512, 768, 1024, 1536)  # pixels of the longer side of reduced photographs


def fetch(folder):
    """Downloads and unpacks the packages that are missing."""
    for package in TRAIN:
        if not (folder / package).exists():
            folder.mkdir(parents=True, exist_ok=True)
            subprocess.run(["apt-get", "download", package], cwd=folder, check=True)
            (deb,) = folder.glob(f"{package}_*.deb")
            subprocess.run(["dpkg-deb", "-x", deb, folder / package], check=True)


def train_photographs(folder):
    """Paths of the training photographs, for each one the file with the largest size."""
    for package, patterns in TRAIN.items():
        for pattern in patterns.split():
            found = (folder / package).rglob(pattern)
            files = [f for p in found for f in (p.rglob("images/*") if p.is_dir() else [p])]
            pictures = [f for f in files if f.suffix in (".jpg", ".png")]
            names = {f.name if "images" not in f.parts else pattern for f in pictures}
            for name in sorted(names):
                same = [f for f in pictures if name in (f.name, pattern)]
                yield max(same, key=lambda f: f.stat().st_size)


def test_photographs():
    """Arrays (H, W, 3) uint8 by name."""
    named = {
        name: getattr(skimage.data, name)() for name in "astronaut chelsea coffee rocket".split()
    }
    scenes = sklearn.datasets.load_sample_images()
    return named | {Path(f).stem: i for f, i in zip(scenes.filenames, scenes.images, strict=True)}


def random_patches(path, count, rng):
    """`count` patches of a photograph: uint8 (count, SIZE, SIZE, 3)."""
    size, patches = SIZE.value, []
    with Image.open(path) as file:
        photograph = file.convert("RGB")
    for number, side in enumerate(LONG_SIDES):
        ratio = side / max(photograph.size)
        width, height = (round(s * ratio) for s in photograph.size)
        pixels = np.asarray(photograph.resize((width, height), Image.LANCZOS, reducing_gap=3))
        for _ in range(number, count, len(LONG_SIDES)):
            y, x = (rng.integers(s - size + 1) for s in pixels.shape[:2])
            patch = np.rot90(pixels[y : y + size, x : x + size], rng.integers(4))
            patches.append(patch[:, :: rng.choice([1, -1])])
    return np.stack(patches)


def even_patches(pixels, count):
    """`count` patches on a grid over the photograph: uint8 (count, SIZE, SIZE, 3)."""
    size = SIZE.value
    side = int(np.ceil(count**0.5))
    ys, xs = (np.linspace(0, s - size, side + 2)[1:-1].astype(int) for s in pixels.shape[:2])
    return np.stack([pixels[y : y + size, x : x + size] for y in ys for x in xs])[:count]


def main(_):
    out = Path(OUT.value)
    packages = Path(PACKAGES.value) if PACKAGES.value else out / "packages"
    fetch(packages)
    paths = list(train_photographs(packages))
    rng = np.random.default_rng(0)
    each = -(-NUM.value // len(paths))
    train = np.concatenate([random_patches(path, each, rng) for path in paths])
    named = test_photographs()
    test = np.concatenate([even_patches(p, PER_PHOTOGRAPH.value) for p in named.values()])
    out.mkdir(parents=True, exist_ok=True)
    np.savez(out / "train.npz", images=rng.permutation(train))
    np.savez(out / "test.npz", images=test)
    print(f"{len(train)} patches of {len(paths)} photographs, {len(test)} of {', '.join(named)}")


if __name__ == "__main__":
    cli.run(main)
