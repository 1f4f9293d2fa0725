"""One HTTP/1.1 POST over asyncio streams, and what may be shown of it. No dependency.

HTTP libraries come and go with other packages' requirements, and judges and tools need very little: one request per
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

from mmrl.ground.printable import printable

HEAD_LIMIT = 1 << 16
BODY_LIMIT = 1 << 24
"""Bytes of a reply that are read at most."""
LONGEST_WAIT = 120.0
"""Seconds that a server may ask all requests to wait; what asks for more (a day, by mistake) is asked again then."""
SHOWN = 300
"""Characters of a reply that are shown in an error."""
FRAGMENT = 4
"""So many characters of the key in a row are hidden: servers quote its first and last ones."""
_SECRETS = re.compile(
    r"(?i)(bearer\s+|\b(?:sk|key|token|hf)[-_](?=[\w-]{8}))[\w.~+/=-]+"
    r"|(?<=://)[^@\s]+@"  # credentials of an address
    r"|(?<=[?&])[\w.-]*(?:key|token|secret|signature|password|auth)[\w.-]*=[^&\s]+"  # and of its query
)
_MASKED = re.compile(r"[^\s\"',:]{0,200}(?:\*{3,}|…|\.{3,}|[xX•]{6,})[^\s\"',:]{1,200}")
"""A word of which a server shows the ends only."""


class BrokenReply(OSError):
    """The server closed too early, or sent what is no HTTP."""


@dataclass(frozen=True)
class Reply:
    """Status, headers (lower-case names) and body of an HTTP reply."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def retry_after(self) -> float:
        """Seconds that the server asks to wait (a number or a date), at most `LONGEST_WAIT`; 0 if it does not ask."""
        wish = self.headers.get("retry-after", "").strip()
        try:
            if re.fullmatch(r"[0-9]+(\.[0-9]+)?", wish):
                wait = float(wish)
            else:
                # Wall clock, since the server names a date.
                wait = email.utils.parsedate_to_datetime(wish).timestamp() - time.time()
        # No date, or one of a year that no clock shows.
        except (ValueError, TypeError, OverflowError, OSError):
            return 0.0
        return min(max(wait, 0.0), LONGEST_WAIT)


async def post(url: str, headers: Mapping[str, str], body: bytes, timeout: float) -> Reply:
    """Send one request. Raises OSError for anything that the network or the server does wrong, TimeoutError too."""
    parts = urlsplit(url)
    secure = parts.scheme == "https"
    port = parts.port or (443 if secure else 80)
    target = parts.path or "/"
    if parts.query:
        target = f"{target}?{parts.query}"
    lines = [
        f"POST {target} HTTP/1.1",
        f"Host: {_host(url)}",
    ]
    # Ours win over the caller's: the body is read until its length or the end of the connection.
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
            head = "\r\n".join([*lines, "", ""])  # headers end with an empty line
            writer.write(head.encode("latin-1") + body)
            await writer.drain()
            return await _read(reader)
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError) as error:
            raise BrokenReply(f"the server sent no complete reply ({error})") from error
        finally:
            # Aborted rather than closed: a TLS server that is stuck would make us wait for its goodbye.
            writer.transport.abort()


def redact(text: str, key: str | None) -> str:
    """Hide the key and any piece of it, anything that looks like one, and credentials in addresses."""
    text = _MASKED.sub("***", text)
    if key:
        text = _without_pieces(text.replace(key, "***"), key)
    return _SECRETS.sub("***", text)


def shown(body: bytes | str, key: str | None) -> str:
    """The start of a reply as an error may quote it: no key, nothing that orders a terminal about, one line."""
    # First hidden, then cut: a cut through the key would leave what no longer looks like it.
    piece = body[: 4096 + len(key or "")]
    text = piece.decode(errors="replace") if isinstance(piece, bytes) else piece
    line = " ".join(redact(text, key).split())
    return printable(line[:SHOWN])


def _without_pieces(text: str, key: str) -> str:
    """The text without runs of `FRAGMENT` or more characters that the key holds too, in either case."""
    low, hidden = _lower(text), _lower(key)
    kept: list[str] = []
    place = 0
    while place < len(text):
        end = place
        while end < len(text) and low[place : end + 1] in hidden:
            end += 1
        if end - place >= min(FRAGMENT, len(key)):
            kept.append("***")
            place = end
        else:
            kept.append(text[place])
            place += 1
    return "".join(kept)


def _lower(text: str) -> str:
    """In small letters, of the same length: only ASCII is changed."""
    return "".join(one.lower() if one.isascii() else one for one in text)


async def _read(reader: asyncio.StreamReader) -> Reply:
    """The first reply that is not interim."""
    status = 100
    headers: dict[str, str] = {}
    while status < 200:  # interim replies come before the real one
        head = await reader.readuntil(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        match = re.fullmatch(r"HTTP/1\.[01] (\d{3})(?: .*)?", first)
        if match is None:
            raise ValueError(f"{first[:80]!r} is no HTTP status line")
        status = int(match[1])
        headers = {}
        for line in filter(None, lines):
            name, _, value = line.partition(":")
            headers[name.strip().lower()] = value.strip()
    return Reply(status, headers, await _body(reader, headers))


async def _body(reader: asyncio.StreamReader, headers: Mapping[str, str]) -> bytes:
    """The body by chunks, by its length, or up to the end of the connection, in this order (RFC 9112)."""
    if "chunked" in headers.get("transfer-encoding", "").lower():
        return await _chunks(reader)
    if "content-length" in headers:
        size = int(headers["content-length"])
        return await reader.readexactly(_within_limit(size))
    body = bytearray()
    while chunk := await reader.read(1 << 16):
        body += chunk
        _within_limit(len(body))
    return bytes(body)


async def _chunks(reader: asyncio.StreamReader) -> bytes:
    """A chunked body: hexadecimal size, line end, bytes, line end; a size of 0 ends it."""
    body = bytearray()
    while size := await _chunk_size(reader):
        _within_limit(len(body) + size)
        chunk = await reader.readexactly(size + len(b"\r\n"))
        body += chunk[:size]
    return bytes(body)


async def _chunk_size(reader: asyncio.StreamReader) -> int:
    line = await reader.readuntil(b"\r\n")
    return int(line.split(b";")[0], 16)  # extensions follow a semicolon


def _within_limit(size: int) -> int:
    """The size, if so much is read. Raises ValueError, also for a negative one, which int() accepts."""
    if not 0 <= size <= BODY_LIMIT:
        raise ValueError(f"a body of {size} bytes, at most {BODY_LIMIT} are read")
    return size


def _host(url: str) -> str:
    """Host and port for the header, without credentials."""
    return urlsplit(url).netloc.rpartition("@")[2]
