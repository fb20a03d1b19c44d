"""The web server of the page. It listens only on 127.0.0.1 and refuses requests of other sites."""

import asyncio
import json
import socket
import traceback
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from nvae_jax.explore import requests, uploads
from nvae_jax.explore.explorer import Explorer
from nvae_jax.explore.jobs import Job, Jobs, Superseded

HOST = "127.0.0.1"
HOSTS = (HOST, "localhost")
LARGEST_REQUEST = 2**25  # bytes, including images of the model's size
SECONDS = 0.3  # between two progress messages
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data: blob:; object-src 'none'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class SameOrigin:
    """Middleware that refuses requests of pages from other origins, which browsers declare.

    Args:
      app: the application that answers other requests.
    """

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        app = self._app
        if scope["type"] == "http" and self._is_foreign(Request(scope)):
            app = _refusal("requests of other origins are refused", 403)
        await app(scope, receive, send)

    @staticmethod
    def _is_foreign(request):
        headers = request.headers
        origin, site = headers.get("origin"), headers.get("sec-fetch-site", "none")
        if origin is not None:
            return origin != f"http://{headers.get('host')}"
        is_link = request.method == "GET" and request.url.path == "/"
        return site not in ("same-origin", "none") and not is_link


def make_app(explorer: Explorer, jobs: Jobs) -> Starlette:
    """Makes the web application.

    Args:
      explorer: answers the requests, in the thread of `jobs`.
      jobs: the queue of requests.
    """

    async def describe(_):
        return JSONResponse(explorer.describe(), headers=HEADERS)

    async def upload(request):
        content = await _body(request, uploads.LARGEST, "the file")
        data = explorer.run.experiment.data
        try:
            image, note = await run_in_threadpool(uploads.fit, content, data)
        except ValueError as error:
            return _refusal(_line(error), 400)
        return JSONResponse({"image": uploads.to_text(image), "note": note}, headers=HEADERS)

    async def ask(request):
        body = await _body(request, LARGEST_REQUEST, "the request")
        try:
            message = json.loads(body)
            window, wanted = str(message["window"]), requests.parse(message["request"])
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            return _refusal(f"not a request: {_line(error)}", 400)
        place = (window, message.get("place", type(wanted).__name__))
        job = jobs.submit(place, lambda job: explorer.answer(wanted, job.watch))
        stream = _follow(jobs, place, job)
        return StreamingResponse(stream, media_type="application/x-ndjson", headers=HEADERS)

    async def refuse(_, error):
        return _refusal(error.detail, error.status_code)

    files = [
        Route(path, _page(name))
        for path, name in (("/", "page.html"), ("/page.css", "page.css"), ("/page.js", "page.js"))
    ]
    return Starlette(
        routes=[
            *files,
            Route("/api/run", describe),
            Route("/api/upload", upload, methods=["POST"]),
            Route("/api/ask", ask, methods=["POST"]),
        ],
        middleware=[
            Middleware(TrustedHostMiddleware, allowed_hosts=HOSTS, www_redirect=False),
            Middleware(SameOrigin),
        ],
        exception_handlers={HTTPException: refuse},
    )


def _page(name):
    async def respond(_):
        return FileResponse(Path(__file__).parent / name, headers=HEADERS)

    return respond


def _refusal(message: str, status: int) -> Response:
    return JSONResponse({"error": message}, status, headers=HEADERS)


async def _body(request, limit, what):
    """Reads the content of a request. Raises HTTPException if it exceeds `limit` bytes."""
    parts, size = [], 0
    refusal = HTTPException(413, f"{what} is too large: at most {limit >> 20} MiB are allowed")
    if int(request.headers.get("content-length") or 0) > limit:
        raise refusal
    async for part in request.stream():
        size += len(part)
        if size > limit:
            raise refusal
        parts.append(part)
    return b"".join(parts)


async def _follow(jobs: Jobs, place: Any, job: Job) -> AsyncIterator[str]:
    """Yields lines of JSON: the progress while a job is queued or running, then its outcome.

    If the client closes the connection, the job is cancelled.
    """
    done = asyncio.wrap_future(job.future)
    try:
        while not (done.done() or jobs.closed):
            yield json.dumps({"progress": jobs.progress}) + "\n"
            await asyncio.wait([done], timeout=SECONDS)
        yield json.dumps(_outcome(done)) + "\n"
    finally:
        done.cancel()
        jobs.forget(place, job)


def _outcome(done):
    if not done.done():
        return {"error": "the server is stopping"}
    try:
        return {"result": done.result()}
    except (Superseded, asyncio.CancelledError):
        return {"superseded": True}
    except (ValueError, OSError) as error:
        return {"error": _line(error)}
    except Exception as error:  # The server continues, because other requests can still succeed.
        traceback.print_exception(error)
        return {"error": f"{type(error).__name__}: {_line(error)}"}


def _line(error):
    """The first line of an error's message."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def listen(port: int) -> socket.socket:
    """Opens a socket that listens on 127.0.0.1.

    Args:
      port: port to listen on; 0 chooses a free one.

    Raises:
      ValueError: if the port is not available.
    """
    try:
        return socket.create_server((HOST, port))
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(
            f"port {port} of {HOST} is not available ({reason}): name another --port"
        ) from None


class Server(uvicorn.Server):
    """Serves the application and logs only warnings and errors.

    Args:
      app: the application.
      jobs: its queue, which a signal closes; otherwise waiting pages would keep the server running.
    """

    def __init__(self, app: ASGIApp, jobs: Jobs):
        super().__init__(
            uvicorn.Config(
                app,
                log_level="warning",
                lifespan="off",
                ws="none",
                server_header=False,
                timeout_graceful_shutdown=5,
            )
        )
        self._jobs = jobs

    def handle_exit(self, sig: int, frame: Any) -> None:
        """Stops serving after a signal."""
        self._jobs.closed = True
        super().handle_exit(sig, frame)


def serve(explorer: Explorer, listening: socket.socket) -> None:
    """Compiles the programs and serves the page until a signal stops it.

    Args:
      explorer: the run's `Explorer`.
      listening: the socket from `listen`.

    Raises:
      Exception: the exception with which compiling failed.
    """
    jobs = Jobs()
    server = Server(make_app(explorer, jobs), jobs)
    compiling = jobs.submit("compiling", lambda job: explorer.compile(job.watch)).future

    def stop_if_failed(future):
        if not future.cancelled() and future.exception():
            jobs.closed = server.should_exit = True

    compiling.add_done_callback(stop_if_failed)
    print(f"http://{HOST}:{listening.getsockname()[1]}/ (Ctrl-C stops it)", flush=True)
    try:
        server.run(sockets=[listening])
    finally:
        jobs.close()
    if compiling.done():
        compiling.result()
