"""What counts as one address."""

from ipaddress import IPv6Address, IPv6Network, ip_address

IPV6_PREFIX = 64
"""What one customer gets at least (RFC 6177): whoever has one such network has all addresses in it."""


def address_key(host: str) -> str:
    """Return what connections from one place have in common: an IPv4 address, or an IPv6 network."""
    try:
        address = ip_address(host)
    except ValueError:
        return host  # a name, as tests have it
    if not isinstance(address, IPv6Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(IPv6Network((int(address), IPV6_PREFIX), strict=False))
