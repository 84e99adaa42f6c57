"""An S3 server, and a proxy before it that counts requests and answers some of them wrongly."""

import asyncio
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from uuid import uuid4

SECRET = "SecretThatNoFileMayHold"
BACKOFF = {"init_backoff": timedelta(milliseconds=5), "max_backoff": timedelta(milliseconds=500), "base": 2}
RETRY: Any = {"max_retries": 1000, "retry_timeout": timedelta(seconds=60), "backoff": BACKOFF}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def moto_server() -> Iterator[int]:
    """Start moto, and yield its port."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(port, process)
        yield port
    finally:
        process.kill()
        process.wait()


def wait_for(port: int, process: "subprocess.Popen[bytes]") -> None:
    """Wait until a server listens."""
    for _ in range(1200):
        with suppress(OSError):
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        assert process.poll() is None, "the server ended"
        time.sleep(0.05)
    raise AssertionError("the server does not listen")


def new_bucket(port: int) -> str:
    """Create a bucket, and return its name."""
    name = f"bucket-{uuid4().hex[:12]}"
    url = f"http://127.0.0.1:{port}/{name}"
    urllib.request.urlopen(urllib.request.Request(url, method="PUT")).close()
    return name


def options(port: int, **more: Any) -> dict[str, Any]:
    """Return storage options for a server on this machine."""
    return {
        "endpoint": f"http://127.0.0.1:{port}",
        "region": "us-east-1",
        "access_key_id": "KeyOfTheTests",
        "secret_access_key": SECRET,
        "retry_config": RETRY,
        **more,
    }


@dataclass
class Request:
    """A request that passes the proxy."""

    method: str
    path: str
    headers: dict[str, str]

    @property
    def is_create(self) -> bool:
        return "if-none-match" in self.headers


@dataclass
class Proxy:
    """What passes the proxy, and what happens to it.

    ``fault`` returns a status (``"503"``, answered without the server), ``"cut"`` (the connection ends in the
    middle of the body), ``"lost"`` (the server stores the object, and the answer is lost), ``"ignore"`` (the
    server never sees the condition), or an empty string.
    """

    port: int
    fault: Callable[[Request], str] = lambda _request: ""
    requests: list[Request] = field(default_factory=list)
    injected: Counter[str] = field(default_factory=Counter)
    is_down: bool = False

    def count(self, method: str = "", part: str = "") -> int:
        return sum(method in ("", r.method) and re.search(part, r.path) is not None for r in self.requests)


# what happens to a request, given the number of different requests before it
FAULTS: dict[str, Callable[[Request, int], str]] = {
    "answers 503": lambda r, n: "503" if n % 3 == 0 else "",
    "answers 500": lambda r, n: "500" if n % 4 == 0 else "",
    "answers 429": lambda r, n: "429" if n % 3 == 1 else "",
    "cut requests": lambda r, n: "cut" if r.method == "PUT" and n % 3 == 0 else "",
    "cut creates": lambda r, n: "cut" if r.is_create and n % 2 == 0 else "",
    "lost answers": lambda r, n: "lost" if r.method == "PUT" and n % 3 == 0 else "",
    "lost creates": lambda r, n: "lost" if r.is_create and n % 2 == 0 else "",
    "409 on create": lambda r, n: "409" if r.is_create and n % 2 == 0 else "",
}


def first_attempts(disturbance: Callable[[Request, int], str]) -> Callable[[Request], str]:
    """Return a fault that disturbs the first two attempts at some requests; each succeeds in the end."""
    seen: Counter[str] = Counter()

    def fault(request: Request) -> str:
        key = f"{request.method} {request.path}"
        seen[key] += 1
        return disturbance(request, len(seen) + request.is_create) if seen[key] <= 2 else ""

    return fault


@contextmanager
def proxy(server: int) -> Iterator[Proxy]:
    """Run a proxy before a server on this machine, in a thread."""
    passing = Proxy(0)
    ready = threading.Event()
    stop: asyncio.Event
    loop: asyncio.AbstractEventLoop

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await _pass_on(passing, server, reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.transport.abort() if passing.is_down else writer.close()

    async def run() -> None:
        nonlocal stop, loop
        stop, loop = asyncio.Event(), asyncio.get_running_loop()
        listening = await asyncio.start_server(serve, "127.0.0.1", 0, limit=2**20)
        passing.port = listening.sockets[0].getsockname()[1]
        ready.set()
        await stop.wait()
        listening.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await asyncio.sleep(0)  # transports close in the next round

    thread = threading.Thread(target=asyncio.run, args=(run(),), daemon=True)
    thread.start()
    ready.wait(10)
    try:
        yield passing
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)


async def _pass_on(
    passing: Proxy, server: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> bool:
    """Pass one request and its answer on; return whether the connection stays open."""
    head = await reader.readuntil(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    method, path, _ = first.split(" ", 2)
    headers = {
        name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)
    }
    if passing.is_down:
        passing.injected["down"] += 1
        return False
    request = Request(method, path, headers)
    passing.requests.append(request)
    fault = passing.fault(request)
    passing.injected[fault] += bool(fault)
    length = int(headers.get("content-length", 0))
    if fault == "cut":
        await reader.readexactly(length // 2)
        return False
    body = await reader.readexactly(length)
    if fault.isdigit():
        writer.write(f"HTTP/1.1 {fault} Fault\r\nContent-Length: 0\r\n\r\n".encode())
        await writer.drain()
        return True
    dropped = {"connection", "if-none-match"} if fault == "ignore" else {"connection"}
    kept = [line for line in lines if line and line.partition(":")[0].lower() not in dropped]
    upstream_reader, upstream = await asyncio.open_connection("127.0.0.1", server, limit=2**20)
    upstream.write("\r\n".join([first, *kept, "Connection: close", "", ""]).encode("latin-1") + body)
    await upstream.drain()
    answer = await upstream_reader.read()
    upstream.close()
    if fault == "lost":
        return False
    writer.write(answer)  # ends with the connection, which the server closes
    await writer.drain()
    return False
