"""Lets Orbax save checkpoints to s3://. Orbax supports only gs://, although TensorStore has drivers
for both."""

import functools
import importlib
import os
from typing import Any

_NAMES = {
    "orbax.checkpoint._src.path.gcs_utils": ("is_gcs_path", "get_kvstore_for_gcs"),
    "orbax.checkpoint._src.serialization.tensorstore_utils": ("_use_gcs_driver", "_normalize_path"),
}


@functools.cache
def teach() -> None:
    """Patches Orbax so that it handles paths in s3:// like paths in gs://.

    Raises:
      ValueError: if this release of Orbax lacks the internal functions that have to be patched.
    """
    paths, stores = (_module(name, needed) for name, needed in _NAMES.items())
    is_gcs_path, kvstore_for_gcs = paths.is_gcs_path, paths.get_kvstore_for_gcs
    use_gcs_driver, normalize = stores._use_gcs_driver, stores._normalize_path
    paths.is_gcs_path = lambda path: _is_s3(path.as_posix()) or is_gcs_path(path)
    paths.get_kvstore_for_gcs = lambda path: (
        _kvstore(path) if _is_s3(path) else kvstore_for_gcs(path)
    )
    stores._use_gcs_driver = lambda path: _is_s3(path) or use_gcs_driver(path)
    stores._normalize_path = lambda path: path.rstrip("/") if _is_s3(path) else normalize(path)


def _module(name, needed) -> Any:
    try:
        module = importlib.import_module(name)
    except ImportError:
        module = None
    if module is None or not all(hasattr(module, one) for one in needed):
        raise ValueError("checkpoints in s3:// need another release of Orbax, such as 0.12.8")
    return module


def _is_s3(path):
    return str(path).startswith("s3://")


def _kvstore(path) -> dict[str, Any]:
    """TensorStore's spec of a folder in S3, with endpoint and region from AWS's usual variables."""
    bucket, _, key = path.removeprefix("s3://").partition("/")
    spec: dict[str, Any] = {"driver": "s3", "bucket": bucket, "path": key}
    if address := os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"):
        spec["endpoint"] = address
    if region := os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"):
        spec["aws_region"] = region
    return spec
