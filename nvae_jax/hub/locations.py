"""Where models are: shipped with the package, on the Hugging Face Hub, or in a folder."""

import contextlib
import difflib
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nvae_jax import extras, files, mirror, paths, run_directory
from nvae_jax.hub import model_folder

SHIPPED = Path(__file__).parents[1] / "pretrained"  # a link to models/ of the repository
HUB = re.compile(r"hf://(?P<id>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^@\s]+))?/?")


def names() -> list[str]:
    """The models that are shipped with the package, sorted."""
    return sorted(path.parent.name for path in SHIPPED.glob(f"*/{model_folder.WEIGHTS}"))


@contextlib.contextmanager
def fetched(name: str) -> Iterator[Path]:
    """A context with the model folder that `name` stands for, on this machine.

    Args:
      name: of a shipped model; hf://OWNER/NAME[@REVISION]; or a folder.

    Raises:
      ValueError: there is no such model.
    """
    if name in names():
        yield SHIPPED / name
    elif name.startswith("hf:"):
        yield _download(name)
    else:
        yield _folder(name)


def _folder(name):
    path = mirror.local(paths.parse(name, "NAME"))
    if path.is_dir():
        return path
    if path.exists():
        raise ValueError(f"{name} is a file, where the folder of a model is wanted")
    hint = ""
    if path.name == name:
        close = difflib.get_close_matches(name, names())
        hint = f", and no shipped model of that name; there are {', '.join(close or names())}"
    elif re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        hint = f"; one of the Hugging Face Hub is hf://{name}"
    raise ValueError(f"there is no folder {name!r}{hint}")


def publish(folder: Path, name: str, *, private: bool = False, overwrite: bool = False) -> str:
    """Copies a model folder to `name`.

    Args:
      folder: that `model_folder.write` wrote.
      name: hf://OWNER/NAME[@BRANCH], which is made where it is missing; or a folder.
      private: whether a repository that is made is private.
      overwrite: whether a folder with another model may be replaced. The Hub keeps what was there
        in the repository's history.

    Returns:
      where it is, for people.

    Raises:
      ValueError: the place will not do, or refuses it.
    """
    if name.startswith("hf:"):
        return _upload(folder, name, private)
    target = check_target(name, folder, overwrite=overwrite)
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        with files.atomic_write(target / file.relative_to(folder)) as temporary:
            shutil.copyfile(file, temporary)
    return str(target)


def check_target(name: str, folder: Path, *, overwrite: bool = False) -> Path:
    """The folder that `name` stands for, which is new, empty, or holds the model in `folder`.

    Raises:
      ValueError: it holds something else.
    """
    target = paths.check_writable(paths.parse(name, "NAME") / model_folder.WEIGHTS, "NAME")
    there = target.parent
    if not there.exists() or not any(there.iterdir()):
        return there
    if not target.exists() or (there / run_directory.CHECKPOINTS).exists():
        raise ValueError(
            f"{there} is not empty, and no model that was pushed: name a new folder, nothing was "
            "written"
        )
    own, other = (
        model_folder.read_metadata(mirror.local(f / model_folder.WEIGHTS)) for f in (folder, there)
    )
    if own != other and not overwrite:
        raise ValueError(f"{there} holds another model: it stays, unless --overwrite is given")
    return there


def _parse(name):
    if not (found := HUB.fullmatch(name)):
        raise ValueError(f"{name!r} is no repository of the Hub: write hf://OWNER/NAME[@REVISION]")
    return found["id"], found["revision"]


def _hub() -> Any:
    return extras.load("huggingface_hub", "hub", "the Hugging Face Hub")


@contextlib.contextmanager
def _errors_naming(name):
    """Says what the Hub refuses, which it does in many ways and lines, in one."""
    try:
        yield
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = lines[0] if lines else "no message"
        raise ValueError(f"{name}: {type(error).__name__}: {reason}") from error


def _download(name):
    (repository, revision), hub = _parse(name), _hub()
    with _errors_naming(name):
        folder = hub.snapshot_download(
            repository, revision=revision, allow_patterns=list(model_folder.PATTERNS)
        )
    return Path(folder)


def _upload(folder, name, private):
    repository, branch = _parse(name)
    api = _hub().HfApi(library_name="nvae_jax")
    with _errors_naming(name):
        api.create_repo(repository, private=private, exist_ok=True)
        if branch:
            api.create_branch(repository, branch=branch, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            revision=branch,
            commit_message="A model of nvae_jax",
            delete_patterns=[f"{model_folder.RESULTS}/*.json"],  # of the model that was there
        )
    return str(commit.commit_url)


@contextlib.contextmanager
def beside(target: Path) -> Iterator[Path]:
    """A context with a new folder on the file system of `target`, gone at the end."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as folder:
        yield Path(folder)
