"""Which addresses HTTP may lead to."""

from __future__ import annotations

import pytest

from mloc_dagster.results.http_addresses import RefusedAddressError, check_address

LINK_LOCAL = ["169.254.169.254", "fe80::1", "fe80::1%eth0", "::ffff:169.254.1.1"]
METADATA = ["fd00:ec2::254", "100.100.100.200", "64:ff9b::a9fe:a9fe", "2002:a9fe:a9fe::1"]
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
