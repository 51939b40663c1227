"""The hosts that images may be fetched from, and the addresses that anybody on the internet may reach. Pure."""

import ipaddress
import re
from dataclasses import dataclass
from typing import TypeAlias

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME = re.compile(rf"(?=.{{1,253}}\Z)(?:{_LABEL}\.)*(?!\d+\Z|0x[0-9a-f]*\Z){_LABEL}")
"""A host's name, in ASCII. One that ends in a number is another spelling of an address: 127.1, 0x7f.1, 2130706433."""
_ENTRY = re.compile(r"(?P<host>\[[0-9a-f:.]+\]|[^:\[\]]+|[0-9a-f:.]+:[0-9a-f:.]*)(?::(?P<port>[1-9][0-9]{0,4}))?")

_NOT_PUBLIC = tuple(
    ipaddress.ip_network(network)
    for network in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",  # shared by the customers of a provider
        "127.0.0.0/8",
        "168.63.129.16/32",  # Azure's own services, as its machines see them
        "169.254.0.0/16",  # link-local: the metadata of most clouds
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",  # relays of 6to4
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/3",  # multicast and reserved
        "2001::/23",  # of protocols, Teredo among them
        "2001:db8::/32",
        "3fff::/20",
    )
)
"""Of IANA's registries of special addresses. Python's `is_global` knows most of them, which depends on its version."""
_GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")
"""All that IANA has given to hosts so far. Loopback, link-local, private, multicast and IPv4 in IPv6 are outside."""
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


def usual_port(scheme: str) -> int:
    """443 of https, 80 of http."""
    return 443 if scheme == "https" else 80


def address_of(host: str) -> Address | None:
    """The address that the host is, without brackets; None for a name."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def is_name(host: str) -> bool:
    """Whether it is a host's name in lower case and ASCII, in the one spelling that is read here."""
    return _NAME.fullmatch(host) is not None


def is_public(address: Address) -> bool:
    """Whether it is a host's on the internet. Of an IPv6 address that leads to an IPv4 one, whether that is."""
    if isinstance(address, ipaddress.IPv6Address):
        if (leads_to := _leads_to(address)) is not None:
            return is_public(leads_to)
        if address.scope_id is not None or address not in _GLOBAL_UNICAST:
            return False
    return address.is_global and not any(address in network for network in _NOT_PUBLIC)


def _leads_to(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
    return address.ipv4_mapped or address.sixtofour


@dataclass(frozen=True)
class HostRule:
    """An entry of the setting image_url_hosts: a name, *.suffix or an address, and perhaps a port behind a colon.

    port: the only one allowed; None for the scheme's own, 443 of https and 80 of http.
    """

    host: str
    port: int | None = None

    @classmethod
    def parse(cls, entry: str) -> "HostRule":
        """Raises ValueError, which says what an entry looks like."""
        found = _ENTRY.fullmatch(entry.lower())
        host = found["host"].strip("[]") if found else ""
        address = address_of(host)
        if found is None or not (address or is_name(host.removeprefix("*."))):
            raise ValueError(
                f"'{entry}' is no host: give a name (example.org), *.suffix (*.example.org) or an address, "
                "with a port if it is not the usual one (example.org:8443), without scheme and path; "
                "names beyond ASCII as xn--..."
            )
        port = int(found["port"]) if found["port"] else None
        if port is not None and port > 65_535:
            raise ValueError(f"'{entry}': there is no port {port}")
        return cls(str(address) if address else host, port)

    def allows(self, host: str) -> bool:
        """Whether it is this host, or below this suffix."""
        return host == self.host or (self.host[:2] == "*." and host.endswith(self.host[1:]))

    def allows_port(self, scheme: str, port: int) -> bool:
        """Whether URLs of the scheme may name this port."""
        return port == (usual_port(scheme) if self.port is None else self.port)
