"""URLs that callers name, read strictly: any spelling that two parsers might read differently is
refused."""

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

import idna

MAX_URL = 2000

_URL = re.compile(
    r"""(?P<scheme>[A-Za-z]+)://(?P<authority>[^/?#]*)(?P<target>[/?][!"$-\[\]-~]*|)"""
)
_AUTHORITY = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[^\[\]:@%\\]+)(?::(?P<port>[0-9]{1,5}))?")
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")

# Ports of other protocols, in which a crafted HTTP request might have a meaning. Below 1024 only
# HTTP's own ports are allowed.
_OTHER_PROTOCOLS = {
    1080,
    1433,
    1521,
    1719,
    1720,
    1723,
    2049,
    2181,
    2375,
    2376,
    2379,
    2380,
    3306,
    3389,
    3659,
    4045,
    4190,
    4222,
    5060,
    5061,
    5432,
    5672,
    5900,
    6000,
    6379,
    6566,
    6665,
    6666,
    6667,
    6668,
    6669,
    6679,
    6697,
    7000,
    7001,
    9042,
    9092,
    9100,
    10080,
    10250,
    11211,
    27017,
}


class OutboundRefused(Exception):
    """The URL may not be called. The text is for the caller who named it."""


@dataclass(frozen=True)
class Target:
    """The parts of a URL; `host` is a lower-case ASCII name or an address in canonical form."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def host_header(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return (
            host if self.port == {"http": 80, "https": 443}[self.scheme] else f"{host}:{self.port}"
        )


def parse_url(url: str, *, https_only: bool = False) -> Target:
    """Parses a URL. Raises OutboundRefused for any unusual spelling that two parsers might read
    differently."""
    if len(url) > MAX_URL:
        raise OutboundRefused(f"the URL is longer than {MAX_URL} characters")
    found = _URL.fullmatch(url)
    if found is None:
        raise OutboundRefused(
            "not a URL like https://example.com/path: absolute, printable ASCII, without a"
            " #fragment"
        )
    scheme = found["scheme"].lower()
    if scheme not in ("http", "https") or (https_only and scheme != "https"):
        raise OutboundRefused(
            f"the URL must begin with {'https://' if https_only else 'https:// or http://'}"
        )
    if "@" in found["authority"]:
        raise OutboundRefused("the URL holds a user name or a password; leave them out")
    parts = _AUTHORITY.fullmatch(found["authority"])
    if parts is None:
        raise OutboundRefused("the URL's host or port is not spelled plainly")
    port = int(parts["port"] or {"http": 80, "https": 443}[scheme])
    if (port < 1024 and port not in (80, 443)) or port > 65535 or port in _OTHER_PROTOCOLS:
        raise OutboundRefused(
            f"port {port} is not one for HTTP; use 443, 80 or one above 1023 that no protocol owns"
        )
    target = found["target"]
    return Target(
        scheme, _host(parts["host"]), port, target if target.startswith("/") else f"/{target}"
    )


def _host(text: str) -> str:
    if text.startswith("["):
        try:
            return str(IPv6Address(text[1:-1]))
        except ValueError:
            raise OutboundRefused("the URL's host is not an IPv6 address") from None
    try:
        name = (
            text.lower()
            if text.isascii()
            else idna.encode(text, strict=True, std3_rules=True).decode()
        )
    except idna.IDNAError:
        raise OutboundRefused(
            "the URL's host is not a valid international name; write its xn-- form"
        ) from None
    labels = name.split(".")
    if _NUMBER.fullmatch(labels[-1]):
        # Parsers read octal, hexadecimal and short forms as different addresses.
        try:
            return str(IPv4Address(name))
        except ValueError:
            raise OutboundRefused(
                "the URL's host is a number; write an IPv4 address as four decimal ones"
            ) from None
    if len(name) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        raise OutboundRefused(
            "the URL's host is not a name: letters, digits and hyphens, without a dot at its end"
        )
    return name
