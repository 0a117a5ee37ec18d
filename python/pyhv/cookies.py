"""Cookies: what `request.cookies` reads and `resp.add_cookie` writes (RFC 6265)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from typing import Literal

__all__: list[str] = []

_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")  # RFC 6265 section 4.1.1: a token
_OCTETS = r"[!#-+\--:<-\[\]-~]*"
_VALUE = re.compile(rf'{_OCTETS}|"{_OCTETS}"')
_ATTRIBUTE = re.compile(r"[ -:<-~]*")  # no control characters, no semicolon
_DOMAIN = re.compile(
    r"\.?[0-9A-Za-z_](?:[0-9A-Za-z_-]*[0-9A-Za-z_])?(?:\.[0-9A-Za-z_](?:[0-9A-Za-z_-]*[0-9A-Za-z_])?)*"
)
_SAME_SITE = {"lax": "Lax", "strict": "Strict", "none": "None"}
_MAX_SIZE = 4096  # of name and value: browsers drop a larger cookie (RFC 6265bis section 5.6)
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


def _parse(headers: Mapping[str, str]) -> dict[str, str]:
    """Names and values of a Cookie header (RFC 6265 section 5.4)."""
    cookies: dict[str, str] = {}
    for pair in headers.get("Cookie", "").split(";"):
        name, equals, value = pair.partition("=")
        name, value = name.strip(" \t"), value.strip(" \t")
        if not equals or not name:
            continue
        if len(value) >= 2 and value[0] == value[-1] == '"':
            value = value[1:-1]
        cookies.setdefault(_utf8(name), _utf8(value))
    return cookies


def _utf8(latin1: str) -> str:
    """The text of a header's bytes."""
    return latin1 if latin1.isascii() else latin1.encode("latin-1").decode("utf-8", "replace")


def add_cookie(
    name: str,
    value: str,
    *,
    max_age: int | None = None,
    expires: datetime | float | None = None,
    domain: str | None = None,
    path: str | None = "/",
    secure: bool = False,
    http_only: bool = False,
    same_site: Literal["lax", "strict", "none"] | None = "lax",
    partitioned: bool = False,
) -> str:
    """The value of a Set-Cookie header; see `HttpResponse.add_cookie`."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"cookie name {name!r} is not a token (letters, digits and !#$%&'*+-.^_`|~)")
    if not _VALUE.fullmatch(value):
        raise ValueError(
            f"cookie {name}: the value {value!r:.80} has spaces, commas, semicolons, backslashes, quotation marks, "
            "control characters or characters outside ASCII: encode it, by urllib.parse.quote() for example"
        )
    if len(name) + len(value) > _MAX_SIZE:
        raise ValueError(f"cookie {name} has {len(name) + len(value)} bytes: browsers drop what is above {_MAX_SIZE}")
    parts = [f"{name}={value}"]
    if expires is not None:
        parts.append(f"Expires={format_datetime(_moment(name, expires), usegmt=True)}")
    if max_age is not None:
        if isinstance(max_age, bool) or not isinstance(max_age, int):
            raise TypeError(f"cookie {name}: max_age={max_age!r} is not an int of seconds")
        parts.append(f"Max-Age={max_age}")
    if domain is not None:
        if not _DOMAIN.fullmatch(domain):
            raise ValueError(f"cookie {name}: domain={domain!r} is not a host name (of ASCII letters)")
        parts.append(f"Domain={domain}")
    if path is not None:
        if not path.startswith("/") or not _ATTRIBUTE.fullmatch(path):
            raise ValueError(
                f"cookie {name}: path={path!r} does not begin with '/', or has semicolons or control characters"
            )
        parts.append(f"Path={path}")
    # RFC 6265bis section 4.1.3: browsers compare the prefixes without case.
    prefix = name.lower()
    if prefix.startswith("__secure-") and not secure:
        raise ValueError(f"cookie {name}: a name with __Secure- needs secure=True")
    if prefix.startswith("__host-") and not (secure and path == "/" and domain is None):
        raise ValueError(f"cookie {name}: a name with __Host- needs secure=True, path='/' and no domain")
    if secure:
        parts.append("Secure")
    if http_only:
        parts.append("HttpOnly")
    if same_site is not None:
        if same_site not in _SAME_SITE:
            raise ValueError(f"cookie {name}: same_site={same_site!r} is none of 'lax', 'strict', 'none', None")
        if same_site == "none" and not secure:
            raise ValueError(f"cookie {name}: same_site='none' needs secure=True")
        parts.append(f"SameSite={_SAME_SITE[same_site]}")
    if partitioned:
        if not secure:
            raise ValueError(f"cookie {name}: partitioned=True needs secure=True")
        parts.append("Partitioned")
    return "; ".join(parts)


def delete_cookie(name: str, *, path: str | None = "/", domain: str | None = None) -> str:
    """The value of a Set-Cookie header; see `HttpResponse.delete_cookie`."""
    # A browser takes nothing of these names, a deletion neither, without Secure.
    secure = name.lower().startswith(("__secure-", "__host-"))
    return add_cookie(name, "", max_age=0, expires=0, path=path, domain=domain, secure=secure, same_site=None)


def _moment(name: str, expires: datetime | float) -> datetime:
    if isinstance(expires, datetime):
        if expires.tzinfo is None:
            raise ValueError(f"cookie {name}: expires={expires!r} has no time zone")
        return expires.astimezone(timezone.utc)
    if isinstance(expires, bool) or not isinstance(expires, (int, float)):
        raise TypeError(f"cookie {name}: expires={expires!r} is not a datetime or a number of seconds since 1970")
    try:
        return _EPOCH + timedelta(seconds=expires)
    except (OverflowError, ValueError):
        raise ValueError(f"cookie {name}: expires={expires!r} is beyond the year 9999 or no number") from None
