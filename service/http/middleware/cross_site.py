"""Pages of other sites: what their visitors' browsers would send here for them is refused, before its body is read.

A browser sends a form or an image of any page to any address that it reaches, 127.0.0.1 too. It says where the page is:
in Sec-Fetch-Site, if the address has https or is the browser's own machine, and else in Origin. Programs send neither.
"""

from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Receive, Scope, Send

from service.hosts import address_of
from service.http.errors import CrossSite
from service.http.refuse import refuse
from service.origins import ANY

_SAFE = ("GET", "HEAD", "OPTIONS")
"""Change nothing and cost little; the page that asks cannot read the answer."""


class RefuseCrossSite:
    """Refuses requests of pages elsewhere, but of `origins`."""

    def __init__(self, app: ASGIApp, *, origins: Collection[str]) -> None:
        self._app = app
        self._origins = origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI."""
        if scope["type"] == "http" and scope["method"] not in _SAFE:
            site = origin = host = None
            for name, value in scope["headers"]:
                if name == b"sec-fetch-site":
                    site = value.decode("latin-1")
                elif name == b"origin":
                    origin = value.decode("latin-1")
                elif name == b"host":
                    host = value.decode("latin-1")
            if (site or origin) and not self._may_send(site, origin, host, server=scope.get("server")):
                await refuse(CrossSite(origin), scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _may_send(
        self, site: str | None, origin: str | None, host: str | None, *, server: tuple[str, int] | None
    ) -> bool:
        if ANY in self._origins or origin in self._origins:
            return True
        if site is not None:
            return site in ("same-origin", "none")
        # Without https. A name of the attacker's own may lead to this machine: then it stands in both.
        is_own = origin is not None and host is not None and origin.partition("://")[2].lower() == host.lower()
        return is_own and (server is None or not _is_loopback(server[0]) or _is_of_this_machine(host or ""))


def _is_loopback(name: str) -> bool:
    address = address_of(name)
    return address is not None and address.is_loopback


def _is_of_this_machine(host: str) -> bool:
    """Whether nobody else's name can be this: an address, or localhost."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    return address_of(name) is not None or name == "localhost" or name.endswith(".localhost")
