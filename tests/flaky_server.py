"""A local HTTP server that misbehaves on request, and counts what it sends."""

import contextlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Served:
    """One file: its versions (the last one stays) and what goes wrong with it.

    ``drops`` and ``statuses`` are used up, one entry a request: bytes of the body after which
    the connection is closed, and a status to answer instead (None: none). ``location`` redirects;
    ``endless`` sends the content again and again, without telling a length.
    """

    contents: list[bytes]
    etag: bool = True
    content_type: str = "application/octet-stream"
    content_encoding: str | None = None
    honours_range: bool = True
    honours_if_range: bool = True
    drops: list[int | None] = field(default_factory=list)
    statuses: list[int | None] = field(default_factory=list)
    stalls_after: int | None = None
    location: str | None = None
    retry_after: int | None = None
    endless: bool = False


@dataclass
class Request:
    """One request as the server saw it, and the bytes of the body that it sent."""

    path: str
    first_byte: int | None
    if_range: str | None
    sent: int = 0


class FlakyServer:
    """Serves ``files`` by path; ``requests`` is the log."""

    def __init__(self) -> None:
        self.files: dict[str, Served] = {}
        self.requests: list[Request] = []
        self.stopping = threading.Event()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.address = f"http://127.0.0.1:{self._http.server_port}"

    def start(self) -> None:
        # Polled often: shutdown waits for one round.
        threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        self.stopping.set()
        self._http.shutdown()
        self._http.server_close()


@contextmanager
def flaky_server() -> Iterator[FlakyServer]:
    server = FlakyServer()
    server.start()
    try:
        yield server
    finally:
        server.stop()


def _handler(server: FlakyServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            range_header = self.headers.get("Range")
            limits = range_header[6:].split("-") if range_header else [None, ""]
            first = int(limits[0]) if range_header else None
            request = Request(self.path, first, self.headers.get("If-Range"))
            server.requests.append(request)
            served = server.files.get(self.path)
            status = served.statuses.pop(0) if served and served.statuses else None
            if served is None or status:
                self.send_response(status or 404)
                if served and served.retry_after is not None:
                    self.send_header("Retry-After", str(served.retry_after))
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            if served.location:
                self.send_response(302)
                self.send_header("Location", served.location)
                self.end_headers()
                return
            if served.endless:
                self.send_response(200)
                self.end_headers()
                with contextlib.suppress(OSError):
                    while not server.stopping.is_set():
                        request.sent += self.wfile.write(served.contents[0])
                return
            content = served.contents.pop(0) if len(served.contents) > 1 else served.contents[0]
            etag = f'"{hash(content):x}"' if served.etag else None
            size = len(content)
            outdated = served.honours_if_range and request.if_range not in (None, etag)
            if first is None or not served.honours_range or outdated:
                first = 0
                self.send_response(200)
            elif first >= size:
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{size}")
                self.end_headers()
                return
            else:
                size = min(int(limits[1]) + 1, size) if limits[1] else size
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {first}-{size - 1}/{len(content)}")
            body = content[first:size]
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Content-Type", served.content_type)
            if etag:
                self.send_header("ETag", etag)
            if served.content_encoding:
                self.send_header("Content-Encoding", served.content_encoding)
            self.end_headers()
            drop = served.drops.pop(0) if served.drops else None
            stop = drop if drop is not None else served.stalls_after
            request.sent = len(body[:stop])
            self.wfile.write(body[:stop])
            if drop is None and stop is not None:
                self.wfile.flush()
                server.stopping.wait(10)

        def log_message(self, *_: object) -> None:
            """Keep the test output clean."""

    return Handler
