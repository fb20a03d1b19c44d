"""Damaged inputs of the tools, damaged data sets, and outputs that are also inputs."""

import os
from pathlib import Path

import numpy as np

from tests.fuzz import damage
from tests.fuzz.case import EITHER, REFUSED, RIGHT, call
from tests.fuzz.damage import ANY_FILE, CONTENT, REMOVED, arrays, copy_of, keys, picture, text
from tests.fuzz.run_cases import JSONS

INPUT_FILES = {
    "images.npz": ANY_FILE
    | {
        "no images": arrays(images=None),
        "other images": arrays(images=None, pictures=lambda _: np.ones(1)),
        "text": arrays(images=lambda a: a.astype(str)),
        "objects": arrays(images=lambda a: a.astype(object)),
        "complex": arrays(images=lambda a: a.astype(complex)),
        "NaN": arrays(images=lambda a: a * float("nan")),
        "0 to 255 as floats": arrays(images=lambda a: a.astype("f4")),
        "negative": arrays(images=lambda a: -1.0 * a),
        "int64": arrays(images=lambda a: a.astype(int)),
        "bool": arrays(images=lambda a: a > 0),
        "of no image": arrays(images=lambda a: a[:0]),
        "another size": arrays(images=lambda a: a[:, :15]),
        "three channels": arrays(images=lambda a: a.repeat(3, -1)),
        "one image": arrays(images=lambda a: a[0]),
        "a number": arrays(images=lambda a: a[0, 0, 0, 0]),
        "structured": arrays(images=lambda a: a.view([("v", "u1")])),
        "bomb": damage.npz_bomb("images"),
    },
    "images.npy": CONTENT
    | {
        "objects": damage.replaced_array(lambda a: a.astype(object)),
        "NaN": damage.replaced_array(lambda a: a * float("nan")),
        "another size": damage.replaced_array(lambda a: a[:, :15]),
    },
    "picture.png": ANY_FILE
    | {
        "bomb": damage.png_bomb,
        "another size": picture("L", (15, 16)),
        "one pixel": picture("L", (1, 1)),
        "EPS": picture("L", (16, 16), "EPS"),
        "PDF": picture("L", (16, 16), "PDF"),
        "TIFF": picture("L", (16, 16), "TIFF"),
        "floats": picture("F", (16, 16), "TIFF"),
        "CMYK": picture("CMYK", (16, 16), "JPEG"),
        "16 bits": picture("I;16", (16, 16)),
        "palette": picture("P", (16, 16)),
    },
}
RIGHT_IMAGES = ("bool", "another size", "one pixel", "TIFF", "floats", "CMYK")
RIGHT_IMAGES += ("16 bits", "palette")
LATENTS = ANY_FILE | {
    "no latents": arrays(sample_00=None, sample_01=None, sample_02=None, sample_03=None),
    "a group missing": arrays(sample_01=None),
    "a group more": arrays(sample_04=lambda _: np.ones(1)),
    "NaN": arrays(sample_00=lambda a: a * float("nan")),
    "infinite": arrays(sample_00=lambda a: a + float("inf")),
    "huge": arrays(sample_00=lambda a: a + 1e30),
    "text": arrays(sample_00=lambda a: a.astype(str)),
    "complex": arrays(sample_00=lambda a: a.astype(complex)),
    "another count": arrays(sample_00=lambda a: a[:1]),
    "none": arrays(sample_00=lambda a: a[:0]),
    "another shape": arrays(sample_00=lambda a: a[..., :1]),
    "a number": arrays(sample_00=lambda a: a[0, 0, 0, 0]),
    "strange names": arrays(sample_x=lambda _: np.ones(1)),
    "bomb": damage.npz_bomb("sample_00"),
}
RIGHT_LATENTS = ("huge", "a group missing", "strange names")
ONE_OF_MANY = ("pictures/03.png",)
DATA_SETS = {  # name, folder
    "folder": ("folder", "pictures"),
    "prepared": ("folder", "prepared/folder"),
    "mnist": ("mnist", "idx"),
    "mnist npz": ("mnist", "npz"),
    "npz": ("arrays", "npz"),
    "npy": ("arrays", "npy"),
}
MANIFEST = "prepared/folder/manifest.json"
ARRAYS = {
    "floats": lambda a: a / 255,
    "objects": lambda a: a.astype(object),
    "none": lambda a: a[:0],
    "2 channels": lambda a: np.concatenate([a, a], -1),
    "channels first": lambda a: a.transpose(0, 3, 1, 2),
    "another size": lambda a: a[:, :15],
    "one image": lambda a: a[0, ..., 0],
    "16 bits": lambda a: a.astype(np.uint16),  # nearly black
}
DATA_FILES = {
    "mnist": {
        "idx/train-images-idx3-ubyte.gz": ANY_FILE
        | {
            "bomb": damage.gzip_bomb,
            "zeros": text("\0" * 20),
            "more sizes than bytes": text("\0\0\x08\x03" + "\x7f\0\0\0" * 3),
        },
    },
    "mnist npz": {
        "npz/train.npz": ANY_FILE
        | {
            "floats": arrays(images=lambda a: a / 255),
            "objects": arrays(images=lambda a: a.astype(object)),
            "no images": arrays(images=None, other=lambda _: np.ones(1)),
            "none": arrays(images=lambda a: a[:0]),
            "bomb": damage.npz_bomb("images"),
        },
    },
    "npz": {
        "npz/train.npz": ANY_FILE
        | {what: arrays(images=function) for what, function in ARRAYS.items()}
        | {
            "no images": arrays(images=None, a=lambda _: np.ones(1), b=lambda _: np.ones(1)),
            "bomb": damage.npz_bomb("images"),
        },
    },
    "npy": {
        "npy/train.npy": ANY_FILE
        | {what: damage.whole_array(function) for what, function in ARRAYS.items()}
        | {"an archive": copy_of("npz/train.npz"), "more than there is": damage.npy_bomb},
        "npy": damage.FOLDER,
    },
    "folder": {
        "pictures/03.png": ANY_FILE
        | {
            "bomb": damage.png_bomb,
            "GIF": picture("L", (16, 16), "GIF"),
            "EPS in it": text("%!PS"),
        },
        "pictures": damage.FOLDER,
    },
    "prepared": {
        MANIFEST: ANY_FILE
        | {f"now {content[:10]!r}": text(content) for content in JSONS[:-1]}
        | {
            "no splits": keys(splits=REMOVED),
            "splits are a list": keys(splits=[]),
            "splits are empty": keys(splits={}),
            "no name": keys(name=REMOVED),
            "name is a number": keys(name=3),
            "no size": keys(image_size=REMOVED),
            "size in words": keys(image_size="two"),
            "size is huge": keys(image_size=10**9),
            "no channels": keys(channels=REMOVED),
            "7 channels": keys(channels=7),
            "a file elsewhere": keys(splits={"train": [{"name": "../../x", "count": 4}]}),
            "a file without a count": keys(splits={"train": [{"name": "x"}]}),
            "a file of another kind": keys(splits={"train": ["x"]}),
        },
    },
}


def of_inputs():
    """Damaged files for the tools."""
    for file, functions in INPUT_FILES.items():
        for name, function in functions.items():
            statuses = EITHER if name in RIGHT_IMAGES else REFUSED
            damaged = {"damage": {file: function}, "what": f"{file}: {name}"}
            yield call(
                "encode", f"--images={file}", statuses=statuses, names=(file, "images"), **damaged
            )
            if file == "images.npz":
                for command in ("reconstruct", "interpolate", "traverse"):
                    yield call(command, statuses=statuses, names=(file, "images"), **damaged)
    for what, function in LATENTS.items():
        statuses = EITHER if what in RIGHT_LATENTS else REFUSED
        damaged = {"latents.npz": function}
        yield call("decode", statuses=statuses, names=("latents",), damage=damaged, what=what)
    for what, function in INPUT_FILES["images.npz"].items():
        yield call("nearest", statuses=EITHER, damage={"samples.npz": function}, what=what)
    for what, function in ANY_FILE.items():
        damaged = {"model.pt": function}
        yield call("convert_checkpoint", names=("model.pt",), damage=damaged, what=what)


def of_data():
    """Damaged data sets, for training and for prepare_data."""
    for kind, files in DATA_FILES.items():
        name, place = DATA_SETS[kind]
        data = [f"--config.data.name={name}", f"--config.data.dir={place}"]
        for file, functions in files.items():
            statuses = EITHER if file in ONE_OF_MANY else REFUSED
            for what, function in functions.items():
                damaged = {"damage": {file: function}, "what": f"{file}: {what}"}
                # Training saves its state before it ends because of a picture.
                changes = ("new*",) if file in ONE_OF_MANY else ()
                yield call("train", *data, statuses=statuses, changes=changes, **damaged)
                if kind == "folder":
                    for flags in ([], ["--skip_corrupt"]):
                        made = {"statuses": EITHER, "changes": ("new",)}  # an empty folder
                        yield call("prepare_data", *flags, **made, **damaged)


def of_outputs():
    """Outputs that are also inputs, that existed before, or that cannot be written."""
    yield call("encode", "--out=images.npz")
    yield call("encode", "--out=./run/../images.npz")
    yield call("encode", "--out=run/config.json")
    yield call("encode", "--out=pictures")
    yield call("encode", "--images=picture.png", "--out=picture.png")
    for file in ("model.pt", "run/config.json"):
        yield call("convert_checkpoint", "--export", "--workdir=run", f"--torch={file}")
    yield call("prepare_data", "--data_dir=prepared", statuses=RIGHT)  # there is nothing to do
    for command, made, source in (
        ("decode", "decoded.npz", "latents.npz"),
        ("sample", "samples.npz", "samples.npz"),
    ):
        flags = ["--latents=out/decoded.npz"] if command == "decode" else []
        damaged = {"out": Path.mkdir, f"out/{made}": copy_of(source)}
        yield call(command, *flags, damage=damaged, what=f"out/{made} is there")
        for what, function in {"a folder": Path.mkdir, "a FIFO": os.mkfifo}.items():
            damaged = {"out": Path.mkdir, f"out/{made}": function}
            yield call(command, damage=damaged, what=f"out/{made} is {what}")
