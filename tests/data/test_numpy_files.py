import io
import os
import struct
import zipfile

import numpy as np
import pytest

from nvae_jax.data import limits, numpy_files
from nvae_jax.data.spec import DataError


@pytest.fixture
def arrays():
    return {"images": np.arange(24, dtype=np.uint8).reshape(2, 3, 4), "step": np.array(3)}


def test_all_arrays_some_of_them_or_their_names_are_read(tmp_path, arrays):
    np.savez(tmp_path / "a.npz", **arrays)
    np.save(tmp_path / "a.npy", arrays["images"])
    loaded = numpy_files.load(tmp_path / "a.npz")
    assert set(loaded) == set(arrays)
    for read in (loaded["images"], numpy_files.load(tmp_path / "a.npy")["images"]):
        np.testing.assert_array_equal(read, arrays["images"])
    assert set(numpy_files.load(tmp_path / "a.npz", lambda names: ["step"])) == {"step"}
    assert numpy_files.names(tmp_path / "a.npz") == ["images", "step"]


def header_that_claims(shape):
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        buffer, {"descr": "|u1", "fortran_order": False, "shape": shape}
    )
    return buffer.getvalue()


def test_archives_that_unpack_to_too_much_are_refused_beforehand(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "MAX_UNPACKED", 2**20)
    monkeypatch.setattr(np, "load", lambda *_, **__: pytest.fail("unpacked"))
    many, claims = bytes(2**22), header_that_claims((2**40,))
    (tmp_path / "claims.npy").write_bytes(claims)
    for name, content in (
        ("zeros", header_that_claims((2**22,)) + many),
        ("claims", claims),
        # The length of the header is a claim as well.
        ("header", b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**22) + many),
    ):
        with zipfile.ZipFile(tmp_path / f"{name}.npz", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("images.npy", content)
    for name in ("zeros.npz", "claims.npz", "header.npz", "claims.npy"):
        with pytest.raises(DataError, match=f"{name}: claims to unpack to"):
            numpy_files.load(tmp_path / name)


def test_uncompressed_arrays_can_have_any_size(tmp_path, monkeypatch, arrays):
    monkeypatch.setattr(limits, "MAX_UNPACKED", 10)
    np.savez(tmp_path / "a.npz", **arrays)
    assert len(numpy_files.load(tmp_path / "a.npz")) == 2


def test_other_and_damaged_files_are_errors_that_name_them(tmp_path):
    np.savez(tmp_path / "objects.npz", images=np.array([{}, 1], object))
    (tmp_path / "torn.npz").write_bytes(b"PK\x03\x04 and no more")
    (tmp_path / "version.npy").write_bytes(b"\x93NUMPY\x09\x00" + bytes(100))
    os.mkfifo(tmp_path / "fifo.npz")
    complaints = {
        "objects.npz": "Object arrays cannot be loaded",
        "torn.npz": "cannot be read as .npz or .npy",
        "version.npy": "cannot be read as .npz or .npy",
        "fifo.npz": "is a FIFO, not a file",
        "absent.npz": "there is no file .*absent.npz",
    }
    for name, complaint in complaints.items():
        with pytest.raises(DataError, match=complaint) as caught:
            numpy_files.load(tmp_path / name)
        assert name in str(caught.value) and "\n" not in str(caught.value)
