"""Who may ask, for what, and how much of it: checked before any request reaches the application."""

from __future__ import annotations

import secrets
from collections.abc import Collection
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse, RedirectResponse, Response

COOKIE = "avfs_token"
MOST_JSON = 4 << 20  # bytes of a request that uploads nothing
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "media-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Guard:
    """ASGI middleware.

    A page of another origin can neither read nor change anything (`Origin`, `Sec-Fetch-Site`), nor can a name that was
    made to point here (`Host`, any of `hosts`); beyond this machine a token is asked for, so that `hosts` None needs
    one. Bodies are bounded while they come, those to `uploads` by `most_upload` bytes.
    """

    def __init__(
        self, app: Any, *, hosts: Collection[str] | None, token: str | None, uploads: Collection[str], most_upload: int
    ) -> None:
        if hosts is None and token is None:
            raise ValueError("Any host, and no token.")
        self._app, self._hosts, self._token = app, hosts, token
        self._uploads, self._most = uploads, most_upload

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Refuse, or pass on."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return

        async def with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        limit = self._most if scope["path"] in self._uploads else MOST_JSON
        answer = self._refusal(scope, limit)
        if answer is not None:
            await answer(scope, receive, with_headers)
            return
        received = 0

        async def bounded() -> Any:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > limit:
                raise HTTPException(413, _too_large(limit))
            return message

        await self._app(scope, bounded, with_headers)

    def _refusal(self, scope: Any, limit: int) -> Response | None:
        headers = Headers(scope=scope)
        host, origin, site = headers.get("host", ""), headers.get("origin"), headers.get("sec-fetch-site")
        if scope["type"] != "http":
            return JSONResponse({"error": "There are no websockets here."}, 403)
        if self._hosts is not None and host not in self._hosts:
            return JSONResponse({"error": f"Not the name of this server: {host!r}."}, 421)
        if origin is not None and urlsplit(origin).netloc != host:
            return JSONResponse({"error": "Requests of other sites are not answered."}, 403)
        visit = headers.get("sec-fetch-mode") == "navigate" and scope["method"] == "GET" and scope["path"] == "/"
        if site not in (None, "same-origin", "none") and not visit:
            return JSONResponse({"error": "Requests of other sites are not answered."}, 403)
        if self._token is not None:
            asked = HTTPConnection(scope)
            token = asked.query_params.get("token", "")
            if scope["path"] == "/" and scope["method"] == "GET" and self._is_token(token):
                answer = RedirectResponse("/", 303)
                answer.set_cookie(COOKIE, token, httponly=True, samesite="strict")
                return answer
            scheme, _, bearer = headers.get("authorization", "").partition(" ")
            bearing = scheme.lower() == "bearer" and self._is_token(bearer.strip())
            if not bearing and not self._is_token(asked.cookies.get(COOKIE, "")):
                hint = "Open the address that `avfs serve` printed, or send `Authorization: Bearer TOKEN`."
                return JSONResponse({"error": f"A token is needed. {hint}"}, 401, {"WWW-Authenticate": "Bearer"})
        length = headers.get("content-length", "0")
        if not length.isdigit() or int(length) > limit:
            return JSONResponse({"error": _too_large(limit)}, 413)
        return None

    def _is_token(self, given: str) -> bool:
        assert self._token is not None
        return secrets.compare_digest(given.encode("utf-8", "replace"), self._token.encode())


def _too_large(limit: int) -> str:
    return f"More than {limit:,} bytes are not taken at once."
