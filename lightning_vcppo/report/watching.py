"""Serve the page of a run on the loopback address, and follow the run while it trains."""

from __future__ import annotations

import html
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from typing_extensions import override

HOST = "127.0.0.1"
EVERY_S = 5.0
"""Seconds after which the browser reloads the page, which checks the files of the runs."""
_WAITING = """\
<!doctype html><meta charset="utf-8"><title>vcppo report</title>
<p>There is nothing to draw yet: {reason}"""


class WatchedPage:
    """The current page of runs; it is drawn again when one of their files has changed.

    While no page can be drawn, because a run has logged nothing yet or a file is half written, the
    previous page stays; without one, the reason is shown.
    """

    def __init__(self, directories: Sequence[Path], draw: Callable[[], str]) -> None:
        """Collect the arguments; `current` draws the page.

        Args:
            directories: Directories of the runs, or files.
            draw: Function that returns the page.
        """
        self._directories, self._draw = directories, draw
        self._lock = threading.Lock()
        self._seen: frozenset[tuple[str, int, int]] | None = None
        self._page = ""

    def current(self) -> str:
        """Return the page of the files as they are now."""
        with self._lock:
            seen = frozenset(self._files())
            if seen != self._seen:
                try:
                    self._page = self._draw()
                    self._seen = seen
                except (ValueError, OSError) as error:  # the files may be complete next time
                    return self._page or _WAITING.format(reason=html.escape(str(error)))
            return self._page

    def _files(self) -> Iterator[tuple[str, int, int]]:
        """Yield name, size and time of each file that a page is drawn from."""
        for directory in self._directories:
            for file in [directory] if directory.is_file() else directory.rglob("*"):
                is_read = file.suffix not in (".html", ".ckpt", ".safetensors") and file.is_file()
                if is_read:
                    state = file.stat()
                    yield str(file), state.st_size, state.st_mtime_ns


def build_server(page: WatchedPage, port: int = 0) -> ThreadingHTTPServer:
    """Return a server of the page on the loopback address; the browser reloads it by itself.

    Args:
        page: The page.
        port: 0 takes a free one.

    Raises:
        OSError: If the port is taken.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            # Accept only the names of this host: a page elsewhere whose name resolves to this
            # address (DNS rebinding) could read the responses otherwise.
            host = (self.headers.get("Host") or "").rpartition(":")[0]
            if self.path != "/" or host not in (HOST, "localhost"):
                self.send_error(404)
                return
            content = page.current().encode(errors="replace")
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Cache-Control", "no-store")
            self.send_header("Refresh", f"{EVERY_S:g}")
            self.end_headers()
            with suppress(ConnectionError):  # the browser has left, or reloads the page
                self.wfile.write(content)

        @override
        def log_message(self, format: str, *args: object) -> None:
            """Log no requests."""

    return ThreadingHTTPServer((HOST, port), Handler)
