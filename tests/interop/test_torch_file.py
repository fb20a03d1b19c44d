"""Published files: safe reading, and writing. Needs PyTorch."""

import argparse
import os
import pickle
import warnings

import numpy as np
import pytest

from nvae_jax.interop import torch_file

torch = pytest.importorskip("torch")
with warnings.catch_warnings(action="ignore"):  # deprecated in newer versions
    QUANTISED = torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.quint8)


class Hostile:
    """Unpickled by an unsafe loader, it makes a file."""

    def __init__(self, path):
        self._path = str(path)

    def __reduce__(self):
        return os.mkdir, (self._path,)


def test_a_written_file_is_read_back(tmp_path):
    state = {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3)}
    published = torch_file.PublishedFile(state, {"dataset": "mnist", "ada_groups": True}, 3, 77)
    torch_file.write(tmp_path / "new.pt", published, {"normal_enc": ["res_bnswish"]})
    again = torch_file.read(tmp_path / "new.pt")
    np.testing.assert_array_equal(again.state["a.weight"], state["a.weight"])
    assert (again.args, again.epoch, again.step) == (published.args, 3, 77)
    with pytest.raises(ValueError, match="exists: name a new file"):
        torch_file.write(tmp_path / "new.pt", published, {})


@pytest.mark.parametrize("where", ["args", "state_dict", "optimizer"])
@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_file_is_refused_and_not_run(tmp_path, where, zipped):
    content = {"args": argparse.Namespace(), "state_dict": {}, where: Hostile(tmp_path / "made")}
    path = tmp_path / "hostile.pt"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=r"refused, nothing in it was run: it asks for \w+.mkdir"):
        torch_file.read(path)
    assert not (tmp_path / "made").exists()


def test_a_bare_pickle_is_refused_and_not_run(tmp_path):
    path = tmp_path / "hostile.pt"
    path.write_bytes(pickle.dumps(Hostile(tmp_path / "made")))
    with pytest.raises(ValueError, match="refused"):
        torch_file.read(path)
    assert not (tmp_path / "made").exists()


def test_other_and_damaged_files_are_errors_that_name_them(tmp_path):
    with pytest.raises(ValueError, match="there is no file"):
        torch_file.read(tmp_path / "absent.pt")
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(ValueError, match="text.pt is (not a PyTorch checkpoint|refused)"):
        torch_file.read(tmp_path / "text.pt")
    (tmp_path / "empty.pt").write_bytes(b"")
    with pytest.raises(ValueError, match="not a PyTorch checkpoint"):
        torch_file.read(tmp_path / "empty.pt")


@pytest.mark.parametrize(
    "content, complaint",
    [
        ({"state_dict": {}}, "lacks args"),
        ([1, 2], "lacks state_dict and args"),
        ({"state_dict": {}, "args": 3}, "has the wrong type"),
        ({"state_dict": {"a": "text"}, "args": {}}, "a is not a plain array but str"),
        ({"state_dict": {3: torch.ones(2)}, "args": {}}, "names must be strings, not 3"),
        ({"state_dict": {}, "args": {("b",): 1}}, "names must be strings, not"),
        ({"state_dict": {"a": torch.tensor([1.0, np.nan])}, "args": {}}, "a has NaN or infinity"),
        ({"state_dict": {"a": torch.ones(2).to_sparse()}, "args": {}}, "array but sparse"),
        ({"state_dict": {"a": torch.ones(2) * 1j}, "args": {}}, "array but complex"),
        ({"state_dict": {"a": torch.ones(2, device="meta")}, "args": {}}, "array but without val"),
        ({"state_dict": {"a": QUANTISED}, "args": {}}, "array but quantised"),
        ({"state_dict": {}, "args": {}, "epoch": np.nan}, "epoch must be a whole number from 0"),
        ({"state_dict": {}, "args": {}, "global_step": "x"}, "global_step must be a whole number"),
        ({"state_dict": {}, "args": {}, "epoch": torch.ones(2)}, "epoch must be a whole number"),
    ],
)
def test_files_without_a_checkpoint_are_refused(tmp_path, content, complaint):
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=complaint):
        torch_file.read(tmp_path / "other.pt")


def test_half_precision_becomes_float32(tmp_path):
    content = {"state_dict": {"a": torch.ones(2).half()}, "args": argparse.Namespace()}
    torch.save(content, tmp_path / "half.pt")
    assert torch_file.read(tmp_path / "half.pt").state["a"].dtype == np.float32
