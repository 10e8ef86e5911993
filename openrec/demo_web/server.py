"""The page's web server: one page, four addresses, on this machine only unless told otherwise.

=======================  =========================================================================
``GET /``                the page
``GET /api/models``      models, number of examples, limits
``GET /api/examples/3``  the file of an example
``POST /api/read/0``     the body is a picture; what model 0 reads in it
=======================  =========================================================================

Errors are ``{"error": "a sentence"}`` with a fitting status. Requests that name another host (DNS rebinding) or come
from a page of another origin are refused, so that no web site can use a server that listens on loopback.
"""

from __future__ import annotations

import ipaddress
import json
import logging
import secrets
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from typing import Any
from urllib.parse import urlsplit

from openrec.demo_web.service import Service
from openrec.errors import ConfigError, SampleError

logger = logging.getLogger("openrec")

MAX_BYTES = 64 * 2**20  # of a picture; a JPEG of 50 megapixels has about 25 million
_SECONDS = 30  # a connection may be silent so long
_AT_ONCE = 8  # pictures in memory
_CONNECTIONS = 64
_IMAGE_TYPES = {b"\x89P": "image/png", b"\xff\xd8": "image/jpeg", b"GI": "image/gif", b"BM": "image/bmp"}


class Refused(Exception):
    """An answer that is an error: status and sentence."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


class DemoServer(ThreadingHTTPServer):
    """``DemoServer(service, host, port).serve_forever()``; port 0 takes a free one.

    Args:
        host: address to listen on. Others than loopback let everybody in the network use the models.
        max_bytes: larger bodies are refused.

    Raises:
        ConfigError: the address cannot be listened on.
    """

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 32

    def __init__(self, service: Service, host: str = "127.0.0.1", port: int = 8000, max_bytes: int = MAX_BYTES):
        self.service, self.max_bytes = service, max_bytes
        self.page = files("openrec.demo_web").joinpath("page.html").read_text(encoding="utf-8")
        self.slots, self.open_connections = (
            threading.BoundedSemaphore(_AT_ONCE),
            threading.BoundedSemaphore(_CONNECTIONS),
        )
        self.local_only = is_loopback(host)
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            super().__init__((host, port), Handler)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            advice = "Try --port 0 for a free one."
            if isinstance(error, socket.gaierror):
                advice = "Expected an address of this machine after --host, such as 127.0.0.1 or 0.0.0.0."
            raise ConfigError(f"cannot listen on {host}, port {port} ({reason.rstrip('.')}). {advice}") from error

    @property
    def url(self) -> str:
        host, port = self.server_address[:2]
        return f"http://[{host!s}]:{port}/" if ":" in str(host) else f"http://{host!s}:{port}/"

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self.open_connections.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.open_connections.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        logger.debug("connection of %s ended", client_address, exc_info=True)  # browsers hang up whenever they like


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches ``host``."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: DemoServer  # type: ignore[assignment]
    server_version, sys_version = "openrec", ""
    protocol_version = "HTTP/1.1"
    timeout = _SECONDS

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_HEAD(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._post)

    def _answer(self, action: Any) -> None:
        try:
            self._check_caller()
            action(urlsplit(self.path).path)
        except Refused as error:
            self._json({"error": str(error)}, error.status)
        except (ConnectionError, TimeoutError):
            self.close_connection = True
        except Exception:
            logger.exception("the page met a fault of this program")
            self._json({"error": "A fault of this program; the terminal shows more."}, 500)

    def _check_caller(self) -> None:
        host = self.headers.get("Host", "")
        name = urlsplit(f"//{host}").hostname or ""
        if self.server.local_only and not is_loopback(name):
            raise Refused(403, "This server answers on this machine only.")
        origin = self.headers.get("Origin")
        if origin and urlsplit(origin).netloc != host:
            raise Refused(403, "Requests from other sites are refused.")

    def _get(self, path: str) -> None:
        service = self.server.service
        if path == "/":
            self._page()
        elif path == "/api/models":
            limits = {"max_bytes": self.server.max_bytes, "max_pixels": service.max_pixels}
            self._json({"models": service.models(), "examples": len(service.examples), **limits})
        elif path == "/favicon.ico":
            self._send(204, b"", "image/x-icon")
        elif path.startswith("/api/examples/"):
            try:
                data = service.example(_number(path))
            except SampleError as error:
                raise Refused(404, _sentence(error)) from error
            self._send(200, data, _IMAGE_TYPES.get(data[:2], "application/octet-stream"))
        else:
            raise Refused(404, "There is nothing at this address.")

    def _post(self, path: str) -> None:
        if not path.startswith("/api/read/"):
            raise Refused(404, "There is nothing at this address.")
        if not self.server.slots.acquire(timeout=_SECONDS):
            self.close_connection = True
            raise Refused(503, "Too many pictures at once. Try again in a moment.")
        try:
            data = self._body()
            result = self.server.service.read(_number(path), data)
        except SampleError as error:
            raise Refused(422, f"This picture could not be read: {error}.") from error
        finally:
            self.server.slots.release()
        self._json(result)

    def _body(self) -> bytes:
        """The request's body, checked for its length before it is taken into memory."""
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal():
            self.close_connection = True
            raise Refused(411, "A picture with a known length is expected (Content-Length).")
        limit = self.server.max_bytes
        if int(length) > limit:
            self._discard(int(length))
            raise Refused(413, f"This file has {int(length) / 2**20:.0f} MiB; at most {limit / 2**20:.0f} are taken.")
        data = self.rfile.read(int(length))
        if len(data) < int(length):
            raise ConnectionError("the body ended early")
        return data

    def _discard(self, length: int) -> None:
        """Let a body that is a little too large arrive, because a browser shows no answer before it has sent all."""
        self.close_connection = True
        left, until = min(length, 4 * self.server.max_bytes), time.monotonic() + _SECONDS
        while left > 0 and time.monotonic() < until:
            part = self.rfile.read(min(left, 2**16))
            if not part:
                break
            left -= len(part)

    def _page(self) -> None:
        nonce = secrets.token_urlsafe(16)
        policy = (
            f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'unsafe-inline'; img-src data: blob: 'self'; "
            "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        data = self.server.page.replace("{{nonce}}", nonce).encode()
        self._send(200, data, "text/html; charset=utf-8", {"Content-Security-Policy": policy})

    def _json(self, content: Any, status: int = 200) -> None:
        if status >= 400 and self.command == "POST" and status != 422:
            self.close_connection = True  # the body may not have been read
        self._send(status, json.dumps(content).encode(), "application/json")

    def _send(self, status: int, data: bytes, kind: str, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        fixed = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cache-Control": "no-store"}
        for key, value in {"Content-Type": kind, **fixed, **(headers or {})}.items():
            self.send_header(key, value)
        if status != 204:
            self.send_header("Content-Length", str(len(data)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        logger.debug("%s %s", self.address_string(), format % args)


def _number(path: str) -> int:
    last = path.rsplit("/", 1)[-1]
    return int(last) if last.isdecimal() and len(last) < 9 else -1


def _sentence(error: Exception) -> str:
    text = str(error)
    return text[:1].upper() + text[1:] + "."
