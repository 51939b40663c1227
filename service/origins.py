"""Origins of pages, as browsers write them in the header Origin: scheme, host, and a port that is not the usual one."""

import re

from service.hosts import address_of, is_name, usual_port

ANY = "*"
_ORIGIN = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<host>\[[0-9a-f:.]+\]|[^:/\[\]]+)(?::(?P<port>[1-9][0-9]{0,4}))?"
)


def web_origin(entry: str) -> str:
    """The entry as a browser writes it; `*` stays. Raises ValueError, which says what an origin looks like."""
    if entry == ANY:
        return entry
    found = _ORIGIN.fullmatch(entry.lower())
    if found is None or not (address_of(found["host"].strip("[]")) or is_name(found["host"])):
        raise ValueError(
            f"'{entry}' is no origin: give scheme and host, with a port if it is not the usual one and without a path: "
            "https://app.example.org or http://localhost:3000; or * for all"
        )
    scheme, host, port = found.groups()
    if port is not None and int(port) > 65_535:
        raise ValueError(f"'{entry}': there is no port {port}")
    is_usual = port is None or (scheme in ("http", "https") and int(port) == usual_port(scheme))
    return f"{scheme}://{host}" if is_usual else f"{scheme}://{host}:{port}"
