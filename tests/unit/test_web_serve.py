"""The server: on a given socket, silent about links, and ended gracefully."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time

import httpx
import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from dicomnode.errors import Busy, SettingsError
from dicomnode.web import serve as web_serve
from dicomnode.web.serve import bind, serve


def slow_app(entered, seconds=0.6):
    def answer(_request):
        entered.set()
        time.sleep(seconds)
        return PlainTextResponse("done")

    return Starlette(routes=[Route("/", answer)])


def test_it_serves_until_told_to_stop_and_answers_what_is_under_way():
    sock, stop, entered = bind("127.0.0.1", 0), threading.Event(), threading.Event()
    port = sock.getsockname()[1]
    server = threading.Thread(target=serve, args=(slow_app(entered), sock, stop))
    server.start()
    got = []
    asker = threading.Thread(target=lambda: got.append(httpx.get(f"http://127.0.0.1:{port}/", timeout=10)))
    asker.start()
    assert entered.wait(10)
    stop.set()
    asker.join(10)
    server.join(10)
    assert not server.is_alive()
    assert got[0].text == "done"
    assert "server" not in got[0].headers
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://127.0.0.1:{port}/", timeout=2)


def test_sigterm_ends_a_process_that_serves_and_no_link_was_logged():
    script = textwrap.dedent("""
        from dicomnode.telemetry.logging import configure_logging
        from starlette.applications import Starlette
        from dicomnode.web.serve import bind, serve
        configure_logging("debug", json=True)
        sock = bind("127.0.0.1", 0)
        print(sock.getsockname()[1], flush=True)
        serve(Starlette(), sock)
    """)
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ
    )
    try:
        port = int(process.stdout.readline())
        assert httpx.get(f"http://127.0.0.1:{port}/v/r/SECRETTOKEN", timeout=10).status_code == 404
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode in (0, -signal.SIGTERM)
    assert "SECRETTOKEN" not in said


def test_a_taken_port_is_busy_and_a_foreign_address_a_bad_setting():
    sock = bind("127.0.0.1", 0)
    with pytest.raises(Busy, match="is taken"):
        bind("127.0.0.1", sock.getsockname()[1])
    sock.close()
    with pytest.raises(SettingsError, match=r"\[web\] host"):
        bind("192.0.2.1", 0)
    with pytest.raises(SettingsError, match=r"\[web\] host"):
        bind("no such host", 0)


def test_connections_that_ask_nothing_are_closed_and_keep_nobody_out(monkeypatch):
    monkeypatch.setattr(web_serve, "MAX_REQUESTS", 4)
    monkeypatch.setattr(web_serve, "HEAD_S", 0.5)
    sock, stop, entered = bind("127.0.0.1", 0), threading.Event(), threading.Event()
    port = sock.getsockname()[1]
    server = threading.Thread(target=serve, args=(slow_app(entered, 1.0), sock, stop))
    server.start()
    try:
        idle = [socket.create_connection(("127.0.0.1", port), 10) for _ in range(5)]
        idle[0].sendall(b"GET / HTTP/1.1\r\nHost: ")  # begins, and never ends
        for connection in idle:
            connection.settimeout(10)
            assert connection.recv(1) == b""  # closed by the server
            connection.close()
        answer = httpx.get(f"http://127.0.0.1:{port}/", timeout=10)  # takes longer than a head may
        assert (answer.status_code, answer.text) == (200, "done")
    finally:
        stop.set()
        server.join(10)


def test_a_connection_that_asked_once_may_not_stay_for_ever_either(monkeypatch):
    monkeypatch.setattr(web_serve, "HEAD_S", 0.5)
    sock, stop, entered = bind("127.0.0.1", 0), threading.Event(), threading.Event()
    server = threading.Thread(target=serve, args=(slow_app(entered, 0.0), sock, stop))
    server.start()
    try:
        with socket.create_connection(("127.0.0.1", sock.getsockname()[1]), 10) as connection:
            connection.settimeout(4)  # below the 5 s after which uvicorn closes what is wholly silent
            connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            while b"done" not in (got := connection.recv(4096)):
                assert got
            connection.sendall(b"G")
            assert connection.recv(1) == b""
    finally:
        stop.set()
        server.join(10)
