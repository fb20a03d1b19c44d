"""A bucket that becomes unwritable in the middle of a run."""

import http.client
import json
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import jax
import numpy as np
import pytest

from nvae_jax import build, run_directory, train
from nvae_jax.checkpoint_files import steps
from tests.buckets.test_runs import config_for, rows, saved
from tests.stores import variables


@pytest.fixture
def proxy(store):
    """(address, event) of a store before the real one, that forbids writing once the event is
    set."""
    behind = os.environ["STORAGE_EMULATOR_HOST"].removeprefix("http://")
    closed = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self):
            content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            location = None
            if closed.is_set() and self.command != "GET":
                error = {"code": 403, "message": "me does not have storage.objects.create access"}
                status, kind, body = 403, "application/json", json.dumps({"error": error}).encode()
            else:
                connection = http.client.HTTPConnection(behind)
                headers = {k: v for k, v in self.headers.items() if k.lower() != "host"}
                connection.request(self.command, self.path, content, headers)
                found = connection.getresponse()
                status, kind, body = found.status, found.getheader("Content-Type"), found.read()
                location = found.getheader("Location")
                connection.close()
            self.send_response(status)
            for name, value in (("Content-Type", kind), ("Location", location)):
                if value:
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
            if b"metrics.jsonl" in content and b'"step": 5' in content:
                closed.set()

        do_GET = do_POST = do_DELETE = do_PUT = do_PATCH = answer

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}", closed
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_run_whose_bucket_becomes_unwritable_ends_in_a_line_and_goes_on_later(
    commands, proxy, bucket, tmp_path
):
    """The bucket takes the rows that go with the checkpoint of step 6, and nothing after them."""
    address, closed = proxy
    workdir = bucket / "run"
    run_directory.save_config(workdir, build.resolve(config_for()))
    done = commands.run("train", f"--workdir={workdir}", **variables(address))
    assert done.returncode == 2 and closed.is_set(), done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"error: {workdir}/") and "no permission" in last, done.stderr
    assert "the newest checkpoint is step 4" in last and "Traceback" not in done.stderr
    assert max(steps(workdir / "checkpoints")) == 4

    train.train(None, workdir)
    train.train(config_for(), tmp_path / "run")
    there, here = saved(workdir, config_for()), saved(tmp_path / "run", config_for())
    jax.tree.map(np.testing.assert_array_equal, there[0], here[0])
    texts = [(folder / "metrics.jsonl").read_text() for folder in (workdir, tmp_path / "run")]
    assert rows(texts[0]) == rows(texts[1])
