"""Makes all HTTP requests of the suite: to URLs that callers name (webhooks, imports by URL) and to
servers that the operator names (providers of models).

    async with Outbound(settings) as out:
        await out.check_url(url)                                             when it is saved
        answer = await out.post(url, body, headers, timeout=10)              when it is used
        fetched = await out.fetch(url, path, max_bytes=..., timeout=60)
    async with Outbound(settings, only=[base_url]) as out:
        reply = await out.call("POST", url, headers, body, timeout=..., max_bytes=...)

The address that is connected to decides. A backend below the HTTP client resolves the name, checks
every address, and connects to one of the checked ones, so a name that points elsewhere a moment
later (DNS rebinding) gains nothing. SNI and Host keep the name. There are no redirects, proxies,
cookies, kept connections or decompression, so an answer can't lead the client elsewhere.

A name with several addresses is refused if any of them is refused: a name that points both outside
and inside is broken or malicious, and picking the good addresses would hide that. A refusal never
reveals whether the name exists.
"""

from shared.outbound.client import Answer, Fetched, Outbound, OutboundFailed, Reply
from shared.outbound.urls import OutboundRefused, parse_url

__all__ = [
    "Answer",
    "Fetched",
    "Outbound",
    "OutboundFailed",
    "OutboundRefused",
    "Reply",
    "parse_url",
]
