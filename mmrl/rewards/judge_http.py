"""One HTTP/1.1 POST over asyncio streams, and what may be shown of it. No dependency.

HTTP libraries come and go with other packages' requirements, and the judge needs very little: one request per
connection, a size limit, and a clear error for everything that a broken server does. Limits: no proxy, no redirects,
no compression.
"""

from __future__ import annotations

import asyncio
import email.utils
import re
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

HEAD_LIMIT = 1 << 16
BODY_LIMIT = 1 << 24
"""Bytes of a reply that are read at most."""
_SECRETS = re.compile(
    r"(?i)(bearer\s+|\b(?:sk|key|token|hf)[-_](?=[\w-]{8}))[\w.~+/=-]+|(?<=://)[^/@\s]+@"
)


class BrokenReply(OSError):
    """The server closed too early, or sent what is no HTTP."""


@dataclass(frozen=True)
class Reply:
    """Status, headers (lower-case names) and body of an HTTP reply."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def retry_after(self) -> float:
        """Seconds that the server asks to wait (a number or a date), 0 if it does not ask."""
        wish = self.headers.get("retry-after", "").strip()
        if re.fullmatch(r"\d{1,9}(\.\d{1,9})?", wish):
            return float(wish)
        try:
            return max(email.utils.parsedate_to_datetime(wish).timestamp() - time.time(), 0.0)
        except (ValueError, TypeError):
            return 0.0


async def post(url: str, headers: Mapping[str, str], body: bytes, timeout: float) -> Reply:
    """Send one request. Raises OSError for anything that the network or the server does wrong, TimeoutError too."""
    parts = urlsplit(url)
    secure = parts.scheme == "https"
    port = parts.port or (443 if secure else 80)
    lines = [
        f"POST {parts.path or '/'}{'?' + parts.query if parts.query else ''} HTTP/1.1",
        f"Host: {_host(url)}",
    ]
    fixed = {
        "Content-Length": str(len(body)),
        "Connection": "close",
        "Accept-Encoding": "identity",
    }
    lines += [f"{name}: {value}" for name, value in {**headers, **fixed}.items()]
    async with asyncio.timeout(timeout):
        reader, writer = await asyncio.open_connection(
            parts.hostname,
            port,
            ssl=ssl.create_default_context() if secure else None,
            limit=HEAD_LIMIT,
        )
        try:
            writer.write("\r\n".join([*lines, "", ""]).encode("latin-1") + body)
            await writer.drain()
            return await _read(reader)
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError) as error:
            raise BrokenReply(f"the server sent no complete reply ({error})") from error
        finally:
            writer.transport.abort()


def redact(text: str, key: str | None) -> str:
    """Hide the key, anything that looks like one, and credentials in addresses."""
    if key:
        text = text.replace(key, "***")
    return _SECRETS.sub("***", text)


async def _read(reader: asyncio.StreamReader) -> Reply:
    status = 100
    headers: dict[str, str] = {}
    while status < 200:  # interim replies come before the real one
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        match = re.fullmatch(r"HTTP/1\.[01] (\d{3})(?: .*)?", head[0])
        if match is None:
            raise ValueError(f"{head[0][:80]!r} is no HTTP status line")
        status = int(match[1])
        pairs = (line.partition(":") for line in head[1:] if line)
        headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
    return Reply(status, headers, await _body(reader, headers))


async def _body(reader: asyncio.StreamReader, headers: Mapping[str, str]) -> bytes:
    if "chunked" in headers.get("transfer-encoding", "").lower():
        return await _chunks(reader)
    if "content-length" in headers:
        size = int(headers["content-length"])
        return await reader.readexactly(_checked(size))
    body = bytearray()
    while chunk := await reader.read(1 << 16):
        body += chunk
        _checked(len(body))
    return bytes(body)


async def _chunks(reader: asyncio.StreamReader) -> bytes:
    body = bytearray()
    while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
        _checked(len(body) + size)
        body += (await reader.readexactly(size + 2))[:-2]
    return bytes(body)


def _checked(size: int) -> int:
    if not 0 <= size <= BODY_LIMIT:
        raise ValueError(f"a body of {size} bytes, at most {BODY_LIMIT} are read")
    return size


def _host(url: str) -> str:
    return urlsplit(url).netloc.rpartition("@")[2]
