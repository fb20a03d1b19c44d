"""Finds and publishes models: shipped with the package, on the Hugging Face Hub, or in a folder."""

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
    """The names of the models that are shipped with the package, sorted."""
    return sorted(path.parent.name for path in SHIPPED.glob(f"*/{model_folder.WEIGHTS}"))


@contextlib.contextmanager
def fetched(name: str) -> Iterator[Path]:
    """A context with a local model folder, downloaded if necessary.

    Args:
      name: name of a shipped model, hf://OWNER/NAME[@REVISION], or a folder.

    Raises:
      ValueError: if there is no such model.
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
        raise ValueError(f"{name} is a file, not the folder of a model")
    hint = ""
    if path.name == name:
        close = difflib.get_close_matches(name, names())
        hint = f", and no shipped model of that name; known: {', '.join(close or names())}"
    elif re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        hint = f"; for a model on the Hugging Face Hub, write hf://{name}"
    raise ValueError(f"there is no folder {name!r}{hint}")


def publish(folder: Path, name: str, *, private: bool = False, overwrite: bool = False) -> str:
    """Publishes a model folder.

    Args:
      folder: a folder written by `model_folder.write`.
      name: hf://OWNER/NAME[@BRANCH], which is created if it does not exist, or a folder.
      private: whether a newly created repository is private.
      overwrite: whether to replace another model in a folder. (On the Hub the previous model stays
        in the repository's history.)

    Returns:
      the published location, for the user.

    Raises:
      ValueError: if the location is not valid, or the Hub refuses the upload.
    """
    if name.startswith("hf:"):
        return _upload(folder, name, private)
    target = check_target(name, folder, overwrite=overwrite)
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        with files.atomic_write(target / file.relative_to(folder)) as temporary:
            shutil.copyfile(file, temporary)
    return str(target)


def check_target(name: str, folder: Path, *, overwrite: bool = False) -> Path:
    """Checks that the folder `name` is new, empty, or holds the model in `folder`, and returns it.

    Raises:
      ValueError: if it holds something else.
    """
    weights = paths.check_writable(paths.parse(name, "NAME") / model_folder.WEIGHTS, "NAME")
    target = weights.parent
    if not target.exists() or not any(target.iterdir()):
        return target
    if not weights.exists() or (target / run_directory.CHECKPOINTS).exists():
        raise ValueError(
            f"{target} is not empty and holds no model that was pushed: name a new folder, nothing "
            "was written"
        )
    own, other = (
        model_folder.read_metadata(mirror.local(f / model_folder.WEIGHTS)) for f in (folder, target)
    )
    if own != other and not overwrite:
        raise ValueError(f"{target} holds another model: it is replaced only with --overwrite")
    return target


def _parse(name):
    if not (found := HUB.fullmatch(name)):
        raise ValueError(
            f"{name!r} is not a repository on the Hub: write hf://OWNER/NAME[@REVISION]"
        )
    return found["id"], found["revision"]


def _hub() -> Any:
    return extras.load("huggingface_hub", "hub", "the Hugging Face Hub")


@contextlib.contextmanager
def _naming_errors(name):
    """A context that turns every error of the Hub's library into a one-line ValueError."""
    try:
        yield
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = lines[0] if lines else "no message"
        raise ValueError(f"{name}: {type(error).__name__}: {reason}") from error


def _download(name):
    (repository, revision), hub = _parse(name), _hub()
    with _naming_errors(name):
        folder = hub.snapshot_download(
            repository, revision=revision, allow_patterns=list(model_folder.PATTERNS)
        )
    return Path(folder)


def _upload(folder, name, private):
    repository, branch = _parse(name)
    api = _hub().HfApi(library_name="nvae_jax")
    with _naming_errors(name):
        api.create_repo(repository, private=private, exist_ok=True)
        if branch:
            api.create_branch(repository, branch=branch, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            revision=branch,
            commit_message="A model of nvae_jax",
            delete_patterns=[f"{model_folder.RESULTS}/*.json"],  # results of an earlier model
        )
    return str(commit.commit_url)


@contextlib.contextmanager
def beside(target: Path) -> Iterator[Path]:
    """A context with a temporary folder on the file system of `target`."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as folder:
        yield Path(folder)
