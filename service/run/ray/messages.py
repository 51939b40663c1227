"""ASGI messages as Ray's proxy takes them: it gets them pickled, from another process."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send


class ForProxy:
    """Middleware. A body is bytes: a view of an array cannot be pickled. No request id: the proxy adds it.

    The proxy reads it from the request's header, as we do.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI."""

        async def send_on(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [(name, value) for name, value in message["headers"] if name != b"x-request-id"]
            elif message["type"] == "http.response.body":
                message["body"] = bytes(message.get("body", b""))
            await send(message)

        await self._app(scope, receive, send_on)
