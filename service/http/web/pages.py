"""The pages for people, / and /docs, and under /web the files that they load. Nothing comes from another host."""

from pathlib import Path

from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from service.http.web.docs import docs_page

STATIC = Path(__file__).parent / "static"

_POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "img-src": "'self'",  # the samples and the icon; users' own pictures are drawn on canvases
    "connect-src": "'self'",
    "worker-src": "'self'",
    "base-uri": "'none'",
    "form-action": "'none'",
    "frame-ancestors": "'none'",
}
HEADERS = {
    "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in _POLICY.items()),
    "X-Frame-Options": "DENY",  # as frame-ancestors, for what does not read that
    "Referrer-Policy": "no-referrer",  # a link that leads elsewhere does not tell this server's address
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",  # the camera takes pictures for the tray
    "Cache-Control": "no-cache",  # asked for again with its ETag: a new version of the server shows its own page
}


def add(app: FastAPI) -> None:
    """Add the pages and their files to the app."""
    files = _Files(directory=STATIC)

    @app.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    async def index(request: Request) -> Response:
        return await files.get_response("index.html", request.scope)

    @app.api_route("/web/{path:path}", methods=["GET", "HEAD"], include_in_schema=False)
    async def file(request: Request, path: str) -> Response:
        return await files.get_response(path, request.scope)

    @app.get("/docs", include_in_schema=False)
    async def docs(request: Request) -> Response:
        return HTMLResponse(docs_page(request.app.openapi()), headers=HEADERS)


class _Files(StaticFiles):
    """Starlette's, with the pages' headers."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        """As StaticFiles: 304 for the ETag that the browser has; raises HTTPException 404."""
        response = await super().get_response(path, scope)
        response.headers.update(HEADERS)
        return response
