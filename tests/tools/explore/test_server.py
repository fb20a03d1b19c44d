"""The web server: what it serves, to whom, and its answers to wrong requests."""

import functools
import io
import json
import signal
import socket
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from nvae_jax.data.spec import DataSpec
from nvae_jax.explore import server, uploads
from nvae_jax.explore.jobs import Jobs

HOME = "http://127.0.0.1:8000"
SAMPLES = {"kind": "samples", "seed": 3, "temperature": 1, "recalibrate": False}


class Explorer:
    """Answers with the seed; seed 7 is refused, 8 fails, and 9 waits until `release` is set."""

    run = SimpleNamespace(experiment=SimpleNamespace(data=DataSpec("digits", image_size=16)))

    def __init__(self):
        self.release, self.seen = threading.Event(), []

    def describe(self):
        return {"name": "tiny"}

    def answer(self, request, watch):
        self.seen.append(request.seed)
        if request.seed == 7:
            raise ValueError("no such seed\nof two lines")
        if request.seed == 8:
            raise RuntimeError("out of memory")
        if request.seed == 9:
            for _ in watch("waiting", range(2)):
                assert self.release.wait(60)
        return {"seed": request.seed}


@pytest.fixture
def explorer():
    return Explorer()


@pytest.fixture
def jobs():
    jobs = Jobs()
    yield jobs
    jobs.close()


@pytest.fixture
def client(explorer, jobs):
    with TestClient(server.make_app(explorer, jobs), base_url=HOME) as client:
        yield client


def ask(client, window="w", **changes):
    body = json.dumps({"window": window, "request": {**SAMPLES, **changes}})
    response = client.post("/api/ask", content=body)
    assert response.status_code == 200, response.text
    return json.loads(response.text.splitlines()[-1])


def test_the_page_and_its_files_are_served(client):
    page = client.get("/")
    assert page.headers["content-type"].startswith("text/html") and "page.js" in page.text
    assert "frame-ancestors 'none'" in page.headers["content-security-policy"]
    for name, kind in (("page.js", "javascript"), ("page.css", "text/css")):
        assert kind in client.get(f"/{name}").headers["content-type"]
    assert client.get("/api/run").json() == {"name": "tiny"}
    assert client.get("/api/nothing").status_code == 404
    assert client.get("/../server.py").status_code == 404


def test_a_request_is_answered(client):
    assert ask(client) == {"result": {"seed": 3}}


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "0"]
)
def test_foreign_hosts_are_refused(client, explorer, host):
    for call in (client.get, client.post):
        for path in ("/", "/api/run", "/api/ask", "/api/upload"):
            assert call(path, headers={"host": host}).status_code == 400
    assert not explorer.seen


@pytest.mark.parametrize(
    "host", ["127.0.0.1:8000", "localhost:8000", "localhost:9999", "127.0.0.1"]
)
def test_both_names_of_this_machine_are_served(client, host):
    """The port can differ, for example if SSH forwards it."""
    headers = {"host": host, "origin": f"http://{host}", "sec-fetch-site": "same-origin"}
    assert client.get("/api/run", headers=headers).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"origin": "http://127.0.0.1:9999"},
        {"origin": "https://127.0.0.1:8000"},
        {"origin": "http://localhost:8000"},
        {"origin": "null"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)
def test_other_origins_are_refused(client, explorer, headers):
    body = json.dumps({"window": "w", "request": SAMPLES})
    for path in ("/api/ask", "/api/upload"):
        response = client.post(path, content=body, headers=headers)
        assert response.status_code == 403
        assert response.json() == {"error": "requests of other origins are refused"}
    assert client.get("/api/run", headers=headers).status_code == 403
    assert not explorer.seen


def test_links_of_other_sites_to_the_page_work(client):
    headers = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
    assert client.get("/", headers=headers).status_code == 200


def png(height, width):
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((height, width), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def test_an_upload_is_cropped_and_resized(client):
    answer = client.post("/api/upload", content=png(20, 30)).json()
    assert answer["note"] == "30×20, cropped to a square and resized to 16×16"
    assert client.post("/api/upload", content=png(16, 16)).json()["note"] == ""


def test_wrong_uploads_are_refused(client):
    answer = client.post("/api/upload", content=b"no picture")
    assert answer.status_code == 400 and answer.json()["error"].startswith("the file: not a PNG")
    assert client.post("/api/upload", content=b"").status_code == 400
    pieces = (bytes(2**20) for _ in range(33))  # of no known length
    for content in (bytes(uploads.LARGEST + 1), pieces):
        answer = client.post("/api/upload", content=content)
        assert answer.status_code == 413
        assert answer.json() == {"error": "the file is too large: at most 32 MiB are allowed"}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"\xff",
        b'{"window": 1}',
        b'{"window": 1, "request": {"kind": "samples"}}',
        b'{"request": {}}',
        b"[" * 100_000,
    ],
)
def test_invalid_requests_are_refused(client, body):
    answer = client.post("/api/ask", content=body)
    assert answer.status_code == 400 and answer.json()["error"].startswith("not a request: ")
    assert "\n" not in answer.json()["error"]


def test_errors_are_one_line_and_the_server_continues(client, capsys):
    assert ask(client, seed=7) == {"error": "no such seed"}
    assert ask(client, seed=8) == {"error": "RuntimeError: out of memory"}
    assert "Traceback" in capsys.readouterr().err
    assert ask(client, seed=3) == {"result": {"seed": 3}}


def wait_for(condition):
    for _ in range(6000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("never")


def test_a_newer_request_supersedes_only_those_of_its_window(client, explorer, jobs, monkeypatch):
    answers, asked, submit = {}, [], jobs.submit
    monkeypatch.setattr(jobs, "submit", lambda *call: asked.append(call) or submit(*call))
    threads = []
    for name, window, seed in (
        ("running", "w", 9),
        ("other window", "v", 1),
        ("stale", "w", 2),
        ("newest", "w", 3),
    ):
        call = functools.partial(ask, client, window, seed=seed)
        thread = threading.Thread(target=lambda n=name, c=call: answers.update({n: c()}))
        thread.start()
        threads.append(thread)
        wait_for(lambda: len(asked) == len(threads) and explorer.seen == [9])
    explorer.release.set()
    for thread in threads:
        thread.join(60)
    assert answers == {
        "running": {"superseded": True},
        "other window": {"result": {"seed": 1}},
        "stale": {"superseded": True},
        "newest": {"result": {"seed": 3}},
    }
    assert explorer.seen == [9, 1, 3]


def test_a_request_that_waits_when_the_server_stops_is_answered(client, explorer, jobs):
    answers = []
    thread = threading.Thread(target=lambda: answers.append(ask(client, seed=9)))
    thread.start()
    wait_for(lambda: explorer.seen == [9])
    server.Server(client.app, jobs).handle_exit(signal.SIGTERM, None)
    thread.join(60)
    explorer.release.set()
    assert answers == [{"error": "the server is stopping"}]


def test_a_port_in_use_is_an_error():
    with socket.create_server((server.HOST, 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=f"port {port} of 127.0.0.1 is not available .*--port"):
            server.listen(port)
    with server.listen(0) as listening:
        assert listening.getsockname()[0] == "127.0.0.1" and listening.getsockname()[1]


def test_an_error_while_compiling_ends_the_server():
    class Broken(Explorer):
        def compile(self, watch):
            raise ValueError("it does not compile")

    with server.listen(0) as listening, pytest.raises(ValueError, match="it does not compile"):
        server.serve(Broken(), listening)
