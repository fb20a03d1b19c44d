"""A bucket that becomes unwritable in the middle of a run."""

import contextlib
import http.client
import json
import os
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from nvae_jax import build, run_directory, train
from nvae_jax.checkpoint_files import steps
from tests.buckets.conftest import assert_same_run, config_for
from tests.conftest import ROOT
from tests.local_cluster import finish, start
from tests.stores import variables

REFUSED = {"error": {"code": 403, "message": "me has no storage.objects.create access"}}


class Proxy(ThreadingHTTPServer):
    """A proxy of the store that refuses all writes after the first one with `last` in its name or
    content."""

    daemon_threads = True

    def __init__(self, last):
        super().__init__(("127.0.0.1", 0), Handler)
        self.last, self.is_closed = last.encode(), False
        self.behind = os.environ["STORAGE_EMULATOR_HOST"].removeprefix("http://")

    def handle_error(self, *_):
        """Ignores clients that have closed their connection."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self):
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        writes = self.command != "GET"
        if writes and self.server.is_closed:
            self.tell(403, {"Content-Type": "application/json"}, json.dumps(REFUSED).encode())
        else:
            self.tell(*self.pass_on(content))
        named = urllib.parse.unquote(self.path).encode() + content
        if writes and self.server.last in named:
            self.server.is_closed = True

    def pass_on(self, content):
        connection = http.client.HTTPConnection(self.server.behind)
        headers = {name: value for name, value in self.headers.items() if name.lower() != "host"}
        connection.request(self.command, self.path, content, headers)
        answer = connection.getresponse()
        found = answer.status, dict(answer.getheaders()), answer.read()
        connection.close()
        return found

    def tell(self, status, headers, body):
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                self.send_header(name, value)
        if status not in (204, 304):
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = do_DELETE = do_PUT = do_PATCH = answer

    def log_message(self, *_):
        pass


@pytest.fixture
def unwritable_after(store):
    """A function from `Proxy`'s `last` to the address of such a proxy."""
    with contextlib.ExitStack() as at_the_end:

        def start(last):
            proxy = at_the_end.enter_context(Proxy(last))
            thread = threading.Thread(target=proxy.serve_forever)
            thread.start()
            at_the_end.callback(thread.join)
            at_the_end.callback(proxy.shutdown)
            return f"http://127.0.0.1:{proxy.server_port}"

        yield start


def test_a_run_whose_bucket_fails_ends_with_one_line_and_can_be_resumed(
    commands, unwritable_after, bucket, whole
):
    """The store accepts a part of a checkpoint, and nothing after that."""
    workdir, address = bucket / "run", unwritable_after("checkpoints/8/")
    run_directory.save_config(workdir, build.resolve(config_for()))
    done = commands.run("train", f"--workdir={workdir}", **variables(address))
    assert done.returncode == 2, done.stderr
    line = done.stderr.splitlines()[-1]
    assert line.startswith(f"error: {workdir}/") and "no permission (" in line, done.stderr
    assert line.endswith("; the newest checkpoint is step 4") and "Traceback" not in done.stderr
    assert steps(workdir / "checkpoints") == [4]
    train.train(None, workdir)
    assert_same_run(workdir, whole)


def test_a_cluster_whose_bucket_fails_ends_with_one_line(commands, unwritable_after, bucket):
    """The process that cannot save does not wait for the other one, which waits for it in the same
    save."""
    workdir, address = bucket / "run", unwritable_after("checkpoints/8/")
    run_directory.save_config(workdir, build.resolve(config_for()))
    train = ROOT / "launch" / "train.py"
    ended = finish(
        start(commands, train, f"--workdir={workdir}", processes=2, **variables(address))
    )
    assert 2 in [status for status, _ in ended], ended
    out = "".join(output for _, output in ended)
    (line,) = (line for line in out.splitlines() if "error: gs://" in line)
    assert "no permission (" in line and line.endswith("; the newest checkpoint is step 4"), out
    assert steps(workdir / "checkpoints") == [4]
