"""A page of another name that is made to lead to this server (DNS rebinding) gets nothing."""

import asyncio
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from bokeh.protocol import Protocol
from tornado.httpclient import AsyncHTTPClient, HTTPRequest
from tornado.websocket import websocket_connect

from app import page
from app.allowed_hosts import allowed_origins, is_own_host
from tests.app.server import Server

NAMED = ["lab.example.org:5006", "plain.example.org", "*.trusted.org:80"]


@pytest.mark.parametrize(
    ("host", "allowed", "is_own"),
    [
        ("localhost:5006", [], True),
        ("localhost", [], True),
        ("LOCALHOST:1", [], True),
        ("app.localhost:5006", [], True),
        ("127.0.0.1:5006", [], True),
        ("127.3.2.1", [], True),
        ("[::1]:5006", [], True),
        ("192.168.1.7:5006", [], True),  # no name, which alone can be made to lead elsewhere
        ("evil.example:5006", [], False),
        ("evil.example", [], False),
        ("localhost.evil.example:5006", [], False),
        ("127.0.0.1.evil.example:5006", [], False),
        ("evil-localhost", [], False),
        ("localhost@evil.example", [], False),
        ("evil.example@localhost", [], False),
        ("localhost:5006/evil", [], False),
        ("localhost:x", [], False),
        ("[::1", [], False),
        ("::1", [], False),  # an address of IPv6 stands in brackets
        ("[evil.example]:5006", [], False),
        ("", [], False),
        ("lab.example.org:5006", NAMED, True),
        ("LAB.example.org:5006", NAMED, True),
        ("lab.example.org:5007", NAMED, False),
        ("plain.example.org", NAMED, True),
        ("a.trusted.org", NAMED, True),
        ("a.b.trusted.org", NAMED, False),
        ("evil.example:5006", NAMED, False),
        ("hub.mybinder.org", ["*"], True),  # as jupyter-panel-proxy starts it
    ],
)
def test_whose_names_are_known(host: str, allowed: list[str], is_own: bool) -> None:
    assert is_own_host(host, allowed) is is_own


def test_names_are_those_that_may_connect(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BOKEH_ALLOW_WS_ORIGIN", raising=False)
    asked = [
        "serve",
        "app/",
        "--allow-websocket-origin",
        "a.org",
        "--port",
        "1",
        "--allow-websocket-origin=b.org",
    ]
    assert allowed_origins(asked) == ["a.org", "b.org"]
    assert allowed_origins(["serve", "app/"]) == []
    monkeypatch.setenv("BOKEH_ALLOW_WS_ORIGIN", "c.org")
    assert allowed_origins(asked) == ["c.org"]


def test_the_proxy_of_jupyter_names_all_hosts() -> None:
    import panel_server

    assert allowed_origins(panel_server._launch_command(1)) == ["*"]


@pytest.mark.parametrize(
    ("host", "address", "user", "reason"),
    [
        ("localhost:5006", "127.0.0.1", None, ""),
        ("evil.example:5006", "127.0.0.1", None, page._FOREIGN),
        ("evil.example:5006", "127.0.0.1", "guest", page._FOREIGN),
        ("localhost:5006", "192.0.2.1", None, page._REFUSED),
        ("localhost:5006", "nonsense", None, page._REFUSED),
        (
            "lab.example.org",
            "192.0.2.1",
            "amira",
            "",
        ),  # a browser sends the cookie to the name alone it is of
    ],
)
def test_who_is_refused_and_why(
    host: str, address: str, user: str | None, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = SimpleNamespace(remote_ip=address, host=host)
    state = SimpleNamespace(
        curdoc=SimpleNamespace(session_context=SimpleNamespace(request=request)), user=user
    )
    monkeypatch.setattr(page, "pn", SimpleNamespace(state=state))
    assert page._refusal() == reason


async def document(port: int, host: str, *, address: str = "127.0.0.1", query: str = "") -> str:
    """Return all that a server shows a page of a name, as a browser would ask for it."""
    client = AsyncHTTPClient()
    url = f"http://{address}:{port}/app{query}"
    page = await client.fetch(url, headers={"Host": host}, request_timeout=120)
    token = re.search(r'"token":"([^"]+)"', page.body.decode())
    assert token is not None
    headers = {"Host": host, "Origin": f"http://{host}"}
    request = HTTPRequest(f"ws://{address}:{port}/app/ws", headers=headers)
    socket = await websocket_connect(request, subprotocols=["bokeh", token[1]])
    parts: list[str] = []
    await socket.read_message(), await socket.read_message(), await socket.read_message()  # its greeting
    question = Protocol().create("PULL-DOC-REQ")
    for part in (question.header_json, question.metadata_json, question.content_json):
        await socket.write_message(part)
    while "roots" not in "".join(parts):
        parts.append(str(await socket.read_message()))
    socket.close()
    return "".join(parts)


@pytest.mark.slow
def test_a_foreign_name_is_shown_why_it_is_refused_and_nothing_else(server: Server) -> None:
    local = asyncio.run(document(server.port, f"localhost:{server.port}"))
    foreign = asyncio.run(document(server.port, f"evil.example:{server.port}"))
    assert (page._FOREIGN in local, "Extract" in local) == (False, True)
    assert (page._FOREIGN in foreign, "Extract" in foreign) == (True, False)


@pytest.mark.slow
def test_a_link_may_hold_any_character(server: Server) -> None:
    text = asyncio.run(document(server.port, f"localhost:{server.port}", query="?run=a?b?c&page=explore"))
    assert "run: there is no run 'a?b?c'" in text


@pytest.mark.slow
def test_nobody_from_another_machine_uses_a_server_without_a_login(tmp_path: Path, public: str) -> None:
    server = Server(tmp_path / "runs", public)
    try:
        text = asyncio.run(document(server.port, f"{public}:{server.port}", address=public))
    finally:
        server.stop()
    assert (page._REFUSED in text, "Extract" in text) == (True, False)


@pytest.mark.nightly
def test_behind_the_proxy_of_jupyter_every_name_is_served(tmp_path: Path) -> None:
    server = Server(tmp_path / "runs", options=["--allow-websocket-origin", "*"])
    try:
        assert "Extract" in asyncio.run(document(server.port, "hub.mybinder.org"))
    finally:
        server.stop()


@pytest.mark.slow
def test_an_ipv6_loopback_is_served_under_every_name_of_it(tmp_path: Path) -> None:
    server = Server(tmp_path / "runs", "::1")
    try:
        shown = {
            host: asyncio.run(document(server.port, host, address="[::1]"))
            for host in (f"[::1]:{server.port}", "[::1]", f"localhost:{server.port}")
        }
        foreign = asyncio.run(document(server.port, "[::1]:1:evil.example", address="[::1]"))
    finally:
        server.stop()
    assert [(page._FOREIGN in text, "Extract" in text) for text in shown.values()] == [(False, True)] * 3
    assert (page._FOREIGN in foreign, "Extract" in foreign) == (True, False)
