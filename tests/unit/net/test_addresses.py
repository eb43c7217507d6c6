"""Which addresses HTTP may lead to."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest

from mloc_dagster.net import guarded_transport
from mloc_dagster.net.addresses import RefusedAddressError, check_address
from mloc_dagster.net.guarded_transport import guarded_client
from tests.image_server import ImageServer, image_server, send

LINK_LOCAL = ["169.254.169.254", "fe80::1", "fe80::1%eth0", "::ffff:169.254.1.1"]
METADATA = [
    *("fd00:ec2::254", "100.100.100.200", "168.63.129.16", "192.0.0.192"),
    *("64:ff9b::a9fe:a9fe", "64:ff9b:1::a9fe:a9fe", "2002:a9fe:a9fe::1", "::169.254.169.254"),
    "2001:0:a9fe:a9fe::5601:5601",
]
PRIVATE = ["127.0.0.1", "::1", "10.1.2.3", "192.168.0.1", "172.16.0.1", "fd00::1", "100.64.0.1"]
OF_THIS_HOST = ["0.0.0.0", "::", "::ffff:127.0.0.1"]
PUBLIC = ["93.184.215.14", "2606:2800:21f:cb07:6820:80da:af6b:8b2c"]


@pytest.mark.parametrize("address", [*LINK_LOCAL, *METADATA])
@pytest.mark.parametrize("private", [True, False])
def test_what_serves_a_machines_credentials_is_refused_always(address: str, private: bool) -> None:
    with pytest.raises(RefusedAddressError, match="link-local"):
        check_address(address, private=private, setting="THE_SETTING")


@pytest.mark.parametrize("address", [*PRIVATE, *OF_THIS_HOST])
def test_private_addresses_are_the_operators_choice(address: str) -> None:
    check_address(address, private=True, setting="THE_SETTING")
    with pytest.raises(RefusedAddressError, match="THE_SETTING forbids"):
        check_address(address, private=False, setting="THE_SETTING")


@pytest.mark.parametrize("address", PUBLIC)
def test_the_internet_is_open(address: str) -> None:
    check_address(address, private=False, setting="THE_SETTING")


@pytest.fixture(scope="module")
def server() -> Iterator[ImageServer]:
    with image_server() as running:
        yield running


SPELLINGS_OF_LOOPBACK = ["2130706433", "0x7f000001", "017700000001", "127.1"]


@pytest.mark.parametrize("host", [*SPELLINGS_OF_LOOPBACK, "localhost", "[::ffff:127.0.0.1]"])
def test_an_address_is_refused_however_it_is_spelled(host: str, server: ImageServer) -> None:
    url = server.add(f"/{host}", send(b"inside")).replace("127.0.0.1", host, 1)
    with (
        guarded_client(private=False, setting="THE_SETTING") as client,
        pytest.raises(RefusedAddressError, match="THE_SETTING forbids"),
    ):
        client.get(url)


def test_the_connection_goes_to_the_address_that_was_checked(
    server: ImageServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter(["127.0.0.1", "169.254.169.254"])
    real = socket.getaddrinfo

    def resolve(host: str, *arguments: Any, **options: Any) -> Any:
        return real(next(answers) if host == "changing.test" else host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    heard: list[str] = []

    def page(handler: BaseHTTPRequestHandler) -> None:
        heard.append(handler.headers["Host"])
        send(b"here")(handler)

    url = server.add("/changing", page).replace("127.0.0.1", "changing.test")
    with guarded_client(private=True, setting="") as client:
        answer = client.get(url)
        assert (answer.text, str(answer.url)) == ("here", url)
        assert heard == [f"changing.test:{answer.url.port}"]
        with pytest.raises(RefusedAddressError, match="link-local"):
            client.get(url)


def test_a_redirect_is_checked_like_any_request(server: ImageServer) -> None:
    url = server.add("/away", send(b"", 302, Location="http://169.254.169.254/latest"))
    with (
        guarded_client(private=True, setting="", follow_redirects=True) as client,
        pytest.raises(RefusedAddressError, match="link-local"),
    ):
        client.get(url)


def test_the_next_address_of_a_host_is_tried_when_one_does_not_answer(
    server: ImageServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guarded_transport, "addresses_of", lambda _: ["::1", "127.0.0.1"])
    url = server.add("/second", send(b"here")).replace("127.0.0.1", "both.test")
    with guarded_client(private=True, setting="") as client:
        assert client.get(url).text == "here"


def test_a_proxy_is_used_and_hosts_without_one_are_not(
    server: ImageServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", server.url)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server.add("http://93.184.215.14/page", send(b"through the proxy"))
    url = server.add("/direct", send(b"direct"))
    with guarded_client(private=True, setting="") as client:
        assert client.get("http://93.184.215.14/page").text == "through the proxy"
        assert client.get(url).text == "direct"
        with pytest.raises(RefusedAddressError, match="link-local"):
            client.get("http://169.254.169.254/latest")
