"""A web server on loopback that takes its time over every long range of bytes."""

import http.server
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

LONG = 1 << 14  # bytes; headers and gains are shorter


@dataclass
class SlowWeb:
    """Where it is, how long it takes, and when each long range was asked for and sent."""

    url: str
    seconds: float
    asked: list[float] = field(default_factory=list)
    sent: list[float] = field(default_factory=list)


@contextmanager
def slow_web(root: Path, seconds: float) -> Iterator[SlowWeb]:
    """Serve the files below ``root``; each range of LONG bytes or more takes so many seconds."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = root / self.path.lstrip("/")
            if not path.is_file():
                self.send_error(404)
                return
            data, status, size = path.read_bytes(), 200, path.stat().st_size
            if match := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")):
                data, status = data[int(match[1]) : int(match[2]) + 1], 206
                if len(data) > LONG:
                    state.asked.append(time.monotonic())
                    time.sleep(state.seconds)
                    state.sent.append(time.monotonic())
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("Accept-Ranges", "bytes")
            if match:
                self.send_header("Content-Range", f"bytes {match[1]}-{match[2]}/{size}")
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state = SlowWeb(f"http://127.0.0.1:{server.server_port}", seconds)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
