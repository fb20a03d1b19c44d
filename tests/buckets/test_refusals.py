"""When a bucket refuses a request, the command ends with a one-line error."""

import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from nvae_jax import buckets, run_directory
from tests.stores import variables

ANONYMOUS = "Anonymous caller does not have storage.objects.get access to the object."
FORBIDDEN = "me@example.com does not have storage.objects.get access to the object."


@pytest.fixture(params=[401, 403])
def refusing(request):
    """The address of a store that answers as Google's does without credentials or permission."""
    status = request.param

    class Handler(BaseHTTPRequestHandler):
        def answer(self):
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            message = ANONYMOUS if status == 401 else FORBIDDEN
            body = json.dumps({"error": {"code": status, "message": message}}).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do_DELETE = do_PUT = answer

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield status, f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def the_line(done):
    assert done.returncode == 2, (done.stdout, done.stderr)
    lines = [line for line in done.stderr.splitlines() if not line.startswith("WARNING:google")]
    (line,) = lines
    assert line.startswith("error: gs://")
    return line


RUN = ["--config=configs/digits.py", "--workdir=gs://bucket/run"]


@pytest.mark.parametrize(
    "command, flags", [("train", RUN), ("train", RUN[1:]), ("evaluate", RUN[1:])], ids=str
)
def test_missing_credentials_and_permissions_are_one_line_errors(
    commands, refusing, command, flags
):
    status, address = refusing
    line = the_line(commands.run(command, *flags, **variables(address)))
    missing = "no valid credentials: run `gcloud auth application-default login`"
    assert (missing if status == 401 else "no permission (") in line
    assert "does not have storage.objects.get access" in line


@pytest.mark.parametrize(
    "command, flags",
    [
        ("train", ["--config=configs/digits.py", "--workdir=gs://absent/run"]),
        ("sample", ["--workdir=gs://absent/run", "--out=gs://bucket/samples"]),
        ("prepare_data", ["--name=folder", "--manual_dir=gs://absent/a", "--data_dir=."]),
        ("prepare_data", ["--name=folder", "--manual_dir=.", "--data_dir=gs://absent/a"]),
    ],
)
def test_a_missing_bucket_is_a_one_line_error(commands, store, tmp_path, command, flags):
    line = the_line(commands.run(command, *flags, HOME=str(tmp_path)))
    assert "there is no bucket gs://absent: make it first, or name another" in line


def test_data_in_a_missing_bucket_are_an_error_before_a_run_is_made(commands, store, tmp_path):
    flags = ["--config=configs/folder.py", f"--workdir={tmp_path / 'run'}"]
    line = the_line(commands.run("train", *flags, "--config.data.dir=gs://absent/a"))
    assert "there is no bucket gs://absent" in line and not (tmp_path / "run").exists()


def test_a_missing_package_is_an_error_that_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    buckets._system.cache_clear()
    with pytest.raises(ValueError, match=r"gs:// needs gcsfs: pip install 'nvae_jax\[gcs\]'$"):
        run_directory.load_config("gs://bucket/run")
