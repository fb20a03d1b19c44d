"""Ways to damage a file: functions of its path, and tables {name: function} of them."""

import gzip
import io
import json
import os
import shutil
import struct
import warnings
import zipfile

import numpy as np
from PIL import Image


def cut(path):
    """Removes the second half."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def garble(path):
    """Changes bytes, but not the length."""
    path.write_bytes(np.random.default_rng(0).bytes(path.stat().st_size))


def empty(path):
    path.write_bytes(b"")


def remove(path):
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def become_folder(path):
    remove(path)
    path.mkdir()


def become_file(path):
    remove(path)
    path.write_text("x")


def become_fifo(path):
    remove(path)
    os.mkfifo(path)


def become_loop(path):
    remove(path)
    os.symlink(path.name, path)


def become_zeros(path):
    """Replaces the file by a link to an endless device."""
    remove(path)
    os.symlink("/dev/zero", path)


ANY_FILE = {
    function.__name__.replace("_", " "): function
    for function in (cut, garble, empty, remove)
    + (become_folder, become_fifo, become_loop, become_zeros)
}
FOLDER = {name: ANY_FILE[name] for name in ANY_FILE if "become" in name or name == "remove"}
CONTENT = {name: ANY_FILE[name] for name in ("cut", "garble", "empty", "remove")}


def text(content):
    """Replaces the file by another text."""
    return lambda path: path.write_bytes(content.encode(errors="surrogateescape"))


def copy_of(name):
    """Replaces the file by a copy of another one, from the folder above."""
    return lambda path: shutil.copy(path.parents[1] / name, path)


def appended(content):
    return lambda path: path.write_bytes(path.read_bytes() + content)


def arrays(**changes):
    """Changes arrays of an .npz file; None removes one, a function maps the old one to the new."""

    def damage(path):
        stored = dict(np.load(path))
        for name, change in changes.items():
            stored[name] = change(stored.get(name)) if callable(change) else change
        stored = {name: array for name, array in stored.items() if array is not None}
        with warnings.catch_warnings(action="ignore"):
            np.savez(path, **stored)

    return damage


def every_array(change):
    """Changes all arrays of an .npz file."""

    def damage(path):
        changed = {name: change(array) for name, array in dict(np.load(path)).items()}
        np.savez(path, **changed)

    return damage


def each(pattern, function):
    """Applies `function` to the files of a folder that match."""

    def damage(folder):
        found = [*folder.glob(pattern)]
        assert found, f"nothing there is like {pattern}"
        for path in found:
            function(path)

    return damage


def replaced_array(change):
    """Changes the array of an .npy file."""
    return lambda path: np.save(path, change(np.load(path)))


def keys(**changes):
    """Changes keys of a JSON file: `section__key=value`; `REMOVED` removes one."""

    def damage(path):
        stored = json.loads(path.read_text())
        for name, value in changes.items():
            *sections, key = name.split("__")
            place = stored
            for section in sections:
                place = place[section]
            if value is REMOVED:
                del place[key]
            else:
                place[key] = value
        path.write_text(json.dumps(stored))

    return damage


REMOVED = object()


def picture(mode, size, form="PNG", **options):
    """Replaces the file by another picture."""
    return lambda path: Image.new(mode, size).save(path, form, **options)


def png_bomb(path):
    """A few kilobytes that unpack to gigabytes."""
    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", b""), (b"IEND", b""))
    content = b"".join(
        struct.pack(">I", len(data)) + kind + data + b"0000" for kind, data in chunks
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + content)


def npz_bomb(name):
    """An array of three gigabytes of zeros in a few megabytes."""

    def damage(path):
        head = io.BytesIO()
        shape = {"descr": "|u1", "fortran_order": False, "shape": (12_000_000, 16, 16, 1)}
        np.lib.format.write_array_header_1_0(head, shape)
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
            with file.open(f"{name}.npy", "w", force_zip64=True) as member:
                member.write(head.getvalue())
                for _ in range(3072):
                    member.write(bytes(10**6))

    return damage


def whole_array(function):
    """Applies a function to the array in an .npy file."""
    return lambda path: np.save(path, function(np.load(path)))


def npy_bomb(path):
    """A header that claims three gigabytes."""
    with open(path, "wb") as file:
        shape = {"descr": "|u1", "fortran_order": False, "shape": (12_000_000, 16, 16, 1)}
        np.lib.format.write_array_header_1_0(file, shape)


def gzip_bomb(path):
    """A file of three megabytes that unpacks to three gigabytes."""
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(struct.pack(">HBB3I", 0, 8, 3, 12_000_000, 16, 16))
        for _ in range(3072):
            file.write(bytes(10**6))
