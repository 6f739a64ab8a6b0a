"""A host of the official files on this machine: it drops, is busy, and changes files."""

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

BLOCK = 1 << 20  # bytes of a body at a time
LONG = 1 << 18  # bytes of a body that may be cut short
CHANGES_AT = 3  # answers after which a file that changes is another version


@dataclass
class Served:
    """A file, and what became of it; ``etag`` is new with every version, the content is not."""

    path: Path
    drops: int = 3  # answers that are still to be cut short
    busy: int = 1  # requests that are still to be refused with 503
    changes: bool = False
    version: int = 1
    answers: int = 0
    sent: int = 0
    faults: dict[str, int] = field(default_factory=dict)

    def fault(self, kind: str) -> None:
        self.faults[kind] = self.faults.get(kind, 0) + 1


class Host:
    """Serves files by name; what goes wrong follows from the seed."""

    def __init__(self, files: dict[str, Path], changing: tuple[str, ...], seed: int) -> None:
        self.files = {name: Served(path, changes=name in changing) for name, path in files.items()}
        self.random, self.lock = random.Random(seed), threading.Lock()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._http.daemon_threads = True
        self.address = f"http://127.0.0.1:{self._http.server_port}"

    def url(self, name: str) -> str:
        return f"{self.address}/{name}"

    def start(self) -> None:
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        self._http.shutdown()
        self._http.server_close()


@contextmanager
def serving(
    files: dict[str, Path], changing: tuple[str, ...] = (), seed: int = 0
) -> Iterator[Host]:
    """A host of these files as long as the context lasts."""
    host = Host(files, changing, seed)
    host.start()
    try:
        yield host
    finally:
        host.stop()


def _handler(host: Host) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            served = host.files.get(unquote(self.path[1:]))
            if served is None:
                self.answer(404)
                return
            with host.lock:
                busy, served.busy = served.busy > 0, max(0, served.busy - 1)
                served.answers += not busy
                if served.changes and served.answers == CHANGES_AT:
                    served.version += 1
                    served.fault("another version")
            if busy:
                served.fault("503")
                self.answer(503, {"Retry-After": "0"})
            else:
                self.give(served)

        def give(self, served: Served) -> None:
            size, etag = served.path.stat().st_size, f'"v{served.version}"'
            wanted = (self.headers.get("Range") or "").removeprefix("bytes=")
            first, last = 0, size - 1
            if wanted and self.headers.get("If-Range", etag) == etag:
                start, _, end = wanted.partition("-")
                first, last = int(start), min(int(end or last), last)
                if first >= size:
                    served.fault("416")
                    self.answer(416, {"Content-Range": f"bytes */{size}"})
                    return
                headers = {"Content-Range": f"bytes {first}-{last}/{size}"}
            else:
                wanted, headers = "", {}
            length = last + 1 - first
            headers |= {"ETag": etag, "Accept-Ranges": "bytes"}
            self.answer(206 if wanted else 200, headers, length)
            stop = self.cut(served, length)
            self.send(served, first, stop)
            if stop < length:
                self.close_connection = True

        def cut(self, served: Served, length: int) -> int:
            """Bytes of a body that are sent before the connection breaks."""
            with host.lock:
                if length < LONG or not served.drops:
                    return length
                served.drops -= 1
                served.fault("dropped")
                return host.random.randrange(1, length)

        def send(self, served: Served, first: int, count: int) -> None:
            with served.path.open("rb") as file:
                file.seek(first)
                while count:
                    block = file.read(min(BLOCK, count))
                    try:
                        self.wfile.write(block)
                    except OSError:  # killed, or it has what it wanted
                        self.close_connection = True
                        return
                    with host.lock:
                        served.sent += len(block)
                    count -= len(block)

        def answer(self, status: int, headers: dict | None = None, length: int = 0) -> None:
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.send_header("Content-Type", "application/octet-stream")
            self.send_header("Content-Length", str(length))
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Quiet."""

    return Handler
