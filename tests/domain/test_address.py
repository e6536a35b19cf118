"""What counts as one address, whatever a client can vary about its own."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastapi_rooms.domain.address import address_key


@pytest.mark.parametrize(
    ("host", "key"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("::ffff:c000:207", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:DB8:1:2::9", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::9", "2001:db8:1:3::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::1", "::/64"),
        ("testclient", "testclient"),
        ("", ""),
        ("192.0.2.07", "192.0.2.07"),
    ],
)
def test_the_key_of_an_address(host, key):
    assert address_key(host) == key


@given(network=st.integers(0, 2**64 - 1), one=st.integers(0, 2**64 - 1), other=st.integers(0, 2**64 - 1))
def test_who_has_a_network_of_ipv6_has_one_address(network, one, other):
    def host(part: int) -> str:
        number = (network << 64) + part
        return ":".join(f"{number >> shift & 0xFFFF:x}" for shift in range(112, -16, -16))

    keys = {address_key(host(part)) for part in (one, other)}
    assert len(keys) == 1 or network == 0, "below ::/64 lie the mapped ones, each of which is somebody"


@given(number=st.integers(0, 2**32 - 1))
def test_an_address_of_ipv4_is_the_same_whether_the_socket_speaks_ipv4_or_ipv6(number):
    host = ".".join(str(number >> shift & 0xFF) for shift in (24, 16, 8, 0))
    assert address_key(host) == address_key(f"::ffff:{host}") == host
