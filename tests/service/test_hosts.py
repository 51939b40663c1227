"""Which hosts an operator has listed, and which addresses are public."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from service.hosts import HostRule, is_name, is_public
from service.settings import Settings


@pytest.mark.parametrize(
    ("entry", "rule"),
    [
        ("example.org", HostRule("example.org")),
        ("EXAMPLE.org:8443", HostRule("example.org", 8443)),
        ("*.example.org", HostRule("*.example.org")),
        ("*.example.org:1", HostRule("*.example.org", 1)),
        ("localhost", HostRule("localhost")),
        ("img_1.example.org", HostRule("img_1.example.org")),
        ("10.0.0.1:9000", HostRule("10.0.0.1", 9000)),
        ("::1", HostRule("::1")),
        ("[::1]", HostRule("::1")),
        ("[0:0::1]:8080", HostRule("::1", 8080)),
    ],
)
def test_an_entry_is_a_host_and_perhaps_a_port(entry: str, rule: HostRule) -> None:
    assert HostRule.parse(entry) == rule
    assert Settings(image_url_hosts=(entry,)).image_url_hosts == (entry,)


@pytest.mark.parametrize(
    "entry",
    [
        "https://example.org",
        "example.org/images",
        "*",
        "*.",
        "a.*.org",
        "example.org:",
        "example.org:0",
        "bücher.example",
        "example.org:65536",
        "example.org:https",
        "127.1",
        "2130706433",
        "example.org.",
        "",
        "[example.org]",
        "fe80::1%1",
        "user@example.org",
        "*.127.0.0.1",
        "a b",
    ],
)
def test_a_misspelt_entry_is_an_error_at_start(entry: str) -> None:
    with pytest.raises(ValidationError, match=r"no host: give a name|there is no port"):
        Settings(image_url_hosts=(entry,))


def test_a_port_is_the_schemes_own_unless_the_entry_names_one() -> None:
    plain, other = HostRule.parse("example.org"), HostRule.parse("example.org:8443")
    asked = [("https", 443), ("http", 80), ("https", 8443), ("http", 8443), ("https", 80), ("http", 443), ("http", 22)]
    assert [each for each in asked if plain.allows_port(*each)] == [("https", 443), ("http", 80)]
    assert [each for each in asked if other.allows_port(*each)] == [("https", 8443), ("http", 8443)]


@pytest.mark.parametrize(
    "host", ["1", "0x7f", "0x", "127.1", "a.1", "a.0x1", "a..b", "-a", "a-", "a.", ".a", "a%2e", "A", ""]
)
def test_other_spellings_are_no_names(host: str) -> None:
    assert not is_name(host)


@pytest.mark.parametrize("host", ["a", "a-b.c_d", "1.a", "xn--bcher-kva.example", "0x1.a", "a" * 63 + ".b"])
def test_names(host: str) -> None:
    assert is_name(host)


PRIVATE = [
    *(
        "0.0.0.0",
        "0.1.2.3",
        "10.0.0.5",
        "100.64.0.1",
        "100.100.100.200",
        "127.0.0.1",
        "127.255.255.255",
        "168.63.129.16",
    ),
    *("169.254.169.254", "172.31.255.255", "192.0.0.192", "192.168.1.1", "198.18.0.1", "224.0.0.1", "239.255.255.255"),
    *("240.0.0.1", "255.255.255.255"),
]
PUBLIC = ["1.1.1.1", "8.8.8.8", "93.184.216.34", "172.32.0.1", "100.128.0.1", "223.255.255.255"]


def _inside(prefix: str, shift: int, address: str) -> ipaddress.IPv6Address:
    """The IPv6 address that holds this IPv4 address behind the prefix."""
    return ipaddress.IPv6Address(int(ipaddress.IPv6Address(prefix)) | int(ipaddress.IPv4Address(address)) << shift)


FORMS = {
    "mapped": ("::ffff:0:0", 0),
    "NAT64": ("64:ff9b::", 0),
    "6to4": ("2002::", 80),
}
REFUSED_FORMS = {
    "compatible": ("::", 0),
    "translated": ("::ffff:0:0:0", 0),
    "local NAT64": ("64:ff9b:1::", 0),
    "local NAT64, /48": ("64:ff9b:1::", 48),
    "Teredo's server": ("2001::", 64),
    "ISATAP, link-local": ("fe80::5efe:0:0", 0),
}


@pytest.mark.parametrize("address", PRIVATE)
def test_private_addresses_are_not_public_in_any_form(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))
    for prefix, shift in (FORMS | REFUSED_FORMS).values():
        assert not is_public(_inside(prefix, shift, address)), prefix


@pytest.mark.parametrize("address", PUBLIC)
def test_a_public_address_is_public_behind_what_leads_to_it(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))
    assert all(is_public(_inside(prefix, shift, address)) for prefix, shift in FORMS.values())
    assert not any(is_public(_inside(prefix, shift, address)) for prefix, shift in REFUSED_FORMS.values())


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("2606:4700::1111", True),
        ("2a00:1450:4001::1", True),
        ("::", False),
        ("::1", False),
        ("fe80::1", False),
        ("2606:4700::1%eth0", False),
        ("fd00::1", False),
        ("fec0::1", False),
        ("ff02::1", False),
        ("ff0e::1", False),
        ("100::1", False),
        ("2001:db8::1", False),
        ("3fff::1", False),
        ("5f00::1", False),
        ("2001:20::1", False),
    ],
)
def test_ipv6(address: str, expected: bool) -> None:
    assert is_public(ipaddress.ip_address(address)) is expected


@given(st.ip_addresses())
def test_no_address_is_public_that_python_calls_private(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    """But those through which IPv6 leads to a public IPv4 address."""
    if is_public(address) and getattr(address, "ipv4_mapped", None) is None:
        assert address.is_global
        assert not address.is_multicast
