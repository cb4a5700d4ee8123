"""The pages: three documents and the files they are made of, from memory.

They are open, because they hold nothing: what they show they ask the API for, with the session of
whoever signed in. No script or style stands in a document, and nothing comes from elsewhere, so the
content policy can be as strict as there is. What a page can do is in serving/pages/.
"""

import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from fastapi import APIRouter, Request, Response

from core.errors import NotFound

FOLDER = Path(__file__).parent / "pages"
STATIC = "/static/"
PAGES = {"/": "index.html", "/label": "label.html", "/loop": "loop.html"}
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "cache-control": "no-cache",
    "content-security-policy": _POLICY,
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}


@dataclass(frozen=True, slots=True)
class File:
    """A file as it is sent."""

    content: bytes
    media_type: str
    etag: str


@cache
def files() -> dict[str, File]:
    """All files of the pages, by name."""
    return {path.name: _read(path) for path in sorted(FOLDER.iterdir()) if path.suffix in _TYPES}


def is_page(path: str) -> bool:
    """Whether a path is open because it is a page, or a file that pages are made of."""
    return path in PAGES or path.startswith(STATIC)


def _read(path: Path) -> File:
    content = path.read_bytes()
    return File(content, _TYPES[path.suffix], f'"{hashlib.sha256(content).hexdigest()[:32]}"')


def _reply(request: Request, name: str) -> Response:
    file = files().get(name)
    if file is None:
        raise NotFound("there is no such file")
    headers = {**_HEADERS, "etag": file.etag}
    known = [tag.strip() for tag in request.headers.get("if-none-match", "").split(",")]
    if file.etag in known or "W/" + file.etag in known:
        return Response(status_code=304, headers=headers)
    return Response(file.content, media_type=file.media_type, headers=headers)


router = APIRouter(include_in_schema=False)


@router.api_route("/", methods=["GET", "HEAD"])
@router.api_route("/label", methods=["GET", "HEAD"])
@router.api_route("/loop", methods=["GET", "HEAD"])
async def page(request: Request) -> Response:
    """One of the three pages."""
    return _reply(request, PAGES[request.url.path])


@router.api_route("/static/{name}", methods=["GET", "HEAD"])
async def static(request: Request, name: str) -> Response:
    """A script, a style or an icon."""
    if name.endswith(".html"):
        raise NotFound("there is no such file")
    return _reply(request, name)
