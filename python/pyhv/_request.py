"""What the program gives for an HTTP request, checked and brought into the form that the native side takes."""

from __future__ import annotations

import base64
import json as json_module
import mimetypes
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, TypeAlias, TypedDict
from urllib.parse import urlencode

if TYPE_CHECKING:
    from typing_extensions import Buffer

Pairs: TypeAlias = "Mapping[str, Any] | Iterable[tuple[str, Any]]"
HeaderPairs: TypeAlias = "Mapping[str, str] | Iterable[tuple[str, str]]"
Path: TypeAlias = "str | os.PathLike[str]"
FileContent: TypeAlias = "bytes | Path"
File: TypeAlias = "FileContent | tuple[str, FileContent] | tuple[str, FileContent, str]"
Files: TypeAlias = "Mapping[str, File] | Iterable[tuple[str, File]]"

#: Without a header of this name among the request's own.
USER_AGENT = f"pyhv/{version('pyhv')}"
#: How many redirects `redirects=True` follows, as browsers' and curl's wrappers do.
MAX_REDIRECTS = 10

#: Made by the client from the body and the connection: a program that sends its own would break the framing.
_RESERVED = {"connection", "content-length", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade"}
_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")  # RFC 9110 section 5.6.2
_COOKIE = re.compile(r"[!#-+\--:<-\[\]-~]*")  # RFC 6265 section 4.1.1: cookie-octet


class RequestOptions(TypedDict, total=False):
    """The named arguments that all requests share; see `pyhv.request`."""

    headers: HeaderPairs | None
    params: Pairs | None
    json: Any
    data: str | Buffer | None
    form: Pairs | None
    files: Files | None
    cookies: Mapping[str, str] | None
    auth: tuple[str, str] | None
    bearer: str | None
    timeout: float | None
    redirects: bool | int
    max_response_size: int | None


class ClientOptions(TypedDict, total=False):
    """The named arguments for how a server is reached; see `pyhv.request`."""

    connect_timeout: float | None
    decompress: bool
    http2: bool
    proxy: str | bool | None
    ca_file: Path | None
    fingerprint: str | None
    client_certfile: Path | None
    client_keyfile: Path | None
    dangerous_accept_any_certificate: bool


def client_options(
    *,
    keep_cookies: bool = False,
    url: str | None = None,
    connect_timeout: float | None = 10.0,
    decompress: bool = True,
    http2: bool = True,
    proxy: str | bool | None = None,
    ca_file: Path | None = None,
    fingerprint: str | None = None,
    client_certfile: Path | None = None,
    client_keyfile: Path | None = None,
    dangerous_accept_any_certificate: bool = False,
) -> dict[str, Any]:
    """For the native client. `url`: the only one that it is for."""
    tls = tls_options(
        ca_file=ca_file,
        fingerprint=fingerprint,
        client_certfile=client_certfile,
        client_keyfile=client_keyfile,
        dangerous_accept_any_certificate=dangerous_accept_any_certificate,
        plain=None if url is None or url.lower().startswith("https:") else (shown(url), "https://"),
    )
    if proxy is True:
        raise ValueError("proxy=True: give a URL, None for what the environment says, or False for none")
    return {
        "tls": tls,
        "connect_timeout": _seconds("connect_timeout", connect_timeout),
        "decompress": bool(decompress),
        "http2": bool(http2),
        "proxy": proxy,
        "keep_cookies": bool(keep_cookies),
        "user_agent": USER_AGENT,
    }


def tls_options(
    *,
    ca_file: Path | None,
    fingerprint: str | None,
    client_certfile: Path | None,
    client_keyfile: Path | None,
    dangerous_accept_any_certificate: bool,
    plain: tuple[str, str] | None,
) -> dict[str, Any]:
    """The arguments for TLS that were given, as the native clients take them; see `pyhv.request`.

    `plain`: the URL that they are given with, if it is one without TLS, and how it would begin with TLS.
    """
    tls = {
        name: value
        for name, value in (
            ("ca_file", ca_file),
            ("fingerprint", fingerprint),
            ("client_certfile", client_certfile),
            ("client_keyfile", client_keyfile),
            ("accept_any_certificate", dangerous_accept_any_certificate or None),
        )
        if value is not None
    }
    if tls and plain is not None:
        name = next(iter(tls)).replace("accept_any", "dangerous_accept_any")
        url, scheme = plain
        raise ValueError(f"{name}= is for {scheme} URLs, not for {url!r}")
    if client_keyfile is not None and client_certfile is None:
        raise ValueError("client_keyfile= needs client_certfile=")
    if sum(name in tls for name in ("ca_file", "fingerprint", "accept_any_certificate")) > 1:
        raise ValueError("ca_file=, fingerprint= and dangerous_accept_any_certificate= exclude one another")
    return tls


def shown(url: str) -> str:
    """A URL as an error may show it, even one that is none: without user and password."""
    return re.sub(r"(?<=://)[^/?#]*@", "", url, count=1)


def request_options(
    method: str,
    url: str,
    *,
    headers: HeaderPairs | None = None,
    params: Pairs | None = None,
    json: Any = None,
    data: str | Buffer | None = None,
    form: Pairs | None = None,
    files: Files | None = None,
    cookies: Mapping[str, str] | None = None,
    auth: tuple[str, str] | None = None,
    bearer: str | None = None,
    timeout: float | None = 30.0,
    redirects: bool | int = True,
    max_response_size: int | None = 64 << 20,
) -> dict[str, Any]:
    """For a native request."""
    if not isinstance(method, str):
        raise TypeError(f"method={method!r} is not a str")
    if not isinstance(url, str):
        raise TypeError(f"a URL is str, not {type(url).__name__}")
    pairs = header_pairs(headers)
    names = {name.lower() for name, _ in pairs}
    authorization = _authorization(auth, bearer)
    if authorization is not None:
        if "authorization" in names:
            raise ValueError("auth= or bearer= and a header Authorization exclude one another")
        pairs.append(("Authorization", authorization))
    body, parts, content_type = _body(json, data, form, files)
    if parts is not None and "content-type" in names:
        raise ValueError("headers: Content-Type is set by files=, which alone knows the boundary")
    if content_type is not None and "content-type" not in names:
        pairs.append(("Content-Type", content_type))
    return {
        "method": method,
        "url": _with_params(url, params),
        "headers": pairs,
        "body": body,
        "parts": parts,
        "cookies": _cookies(cookies),
        "timeout": _seconds("timeout", timeout),
        "redirects": _redirects(redirects),
        "max_response_size": _bytes("max_response_size", max_response_size),
    }


def header_pairs(headers: HeaderPairs | None) -> list[tuple[str, str]]:
    """Headers as a list, checked as far as the native side does not."""
    pairs = list(headers.items() if isinstance(headers, Mapping) else headers or ())
    for name, value in pairs:
        if not isinstance(name, str) or not isinstance(value, str):
            raise TypeError(f"headers: {name!r}: {value!r} are not both str")
        if name.lower() in _RESERVED:
            raise ValueError(f"headers: {name} is set by the client itself")
    return pairs


def merged_headers(base: list[tuple[str, str]], headers: HeaderPairs | None) -> list[tuple[str, str]]:
    """`headers`, and those of `base` that it does not name."""
    own = header_pairs(headers)
    names = {name.lower() for name, _ in own}
    return [pair for pair in base if pair[0].lower() not in names] + own


def _authorization(auth: tuple[str, str] | None, bearer: str | None) -> str | None:
    if auth is not None and bearer is not None:
        raise ValueError("auth= and bearer= exclude one another")
    if bearer is not None:
        if not isinstance(bearer, str):
            raise TypeError(f"bearer= is a str, not {type(bearer).__name__}")
        return f"Bearer {bearer}"
    if auth is None:
        return None
    if not isinstance(auth, (tuple, list)) or len(auth) != 2 or not all(isinstance(part, str) for part in auth):
        raise TypeError("auth= is (user, password), two str")
    user, password = auth
    if ":" in user:
        raise ValueError(f"auth=: the user {user!r} has a colon, which basic authentication has no way to send")
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode("ascii")


def _body(
    json: Any, data: str | Buffer | None, form: Pairs | None, files: Files | None
) -> tuple[bytes | None, list[tuple[str, str | None, str | None, bytes | str]] | None, str | None]:
    """Bytes or parts, and the content type of the bytes."""
    given = [name for name, value in (("json", json), ("data", data), ("form", form)) if value is not None]
    if len(given) > 1 or (files is not None and given not in ([], ["form"])):
        both = " and ".join(f"{name}=" for name in [*given, *(["files"] if files is not None else [])])
        raise ValueError(f"{both} exclude one another: a request has one body")
    if files is not None:
        fields: list[tuple[str, str | None, str | None, bytes | str]] = [
            (name, None, None, value.encode()) for name, value in flat_pairs("form", form)
        ]
        items = files.items() if isinstance(files, Mapping) else files
        return None, fields + [_file(name, file) for name, file in items], None
    if json is not None:
        text = json_module.dumps(json, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        return text.encode(), None, "application/json"
    if form is not None:
        return urlencode(flat_pairs("form", form)).encode("ascii"), None, "application/x-www-form-urlencoded"
    if isinstance(data, str):
        return data.encode(), None, "text/plain; charset=utf-8"
    if data is None:
        return None, None, None
    try:
        return memoryview(data).tobytes(), None, "application/octet-stream"
    except TypeError:
        raise TypeError(f"data= is str or bytes-like, not {type(data).__name__}: json=, form= take objects") from None


def _file(name: str, file: File) -> tuple[str, str | None, str | None, bytes | str]:
    if not isinstance(name, str):
        raise TypeError(f"files: the name {name!r} is not a str")
    filename: str | None = None
    content_type: str | None = None
    content: Any = file
    if isinstance(file, tuple):
        if len(file) not in (2, 3):
            raise ValueError(f"files: {name}: a tuple is (filename, content) or (filename, content, content_type)")
        filename, content = file[0], file[1]
        if len(file) == 3:
            content_type = file[2]
    if isinstance(content, (bytes, bytearray, memoryview)):
        content = bytes(content)
    else:
        try:
            content = os.fsdecode(os.fspath(content))
        except TypeError:
            kind = type(content).__name__
            raise TypeError(f"files: {name} is {kind}: give a path, bytes, or (filename, path or bytes)") from None
        filename = os.path.basename(content) if filename is None else filename
    if filename is None:
        # Without a file name it would be a field, and no file.
        filename = name
    for what, text in (("name", name), ("filename", filename)):
        # A quote and the ends of lines are escaped (WHATWG HTML, multipart/form-data); for the others there is no way,
        # and servers refuse the whole form.
        if any((ord(c) < 0x20 and c not in "\r\n") or ord(c) == 0x7F for c in text):
            raise ValueError(f"files: the {what} {text!r} has control characters")
    if content_type is None:
        content_type = mimetypes.guess_type(filename)[0] or "application/octet-stream"
    return name, filename, content_type, content


def _with_params(url: str, params: Pairs | None) -> str:
    pairs = flat_pairs("params", params)
    if not pairs:
        return url
    front, hash_sign, fragment = url.partition("#")
    path, _, query = front.partition("?")
    front = f"{path}?{query.rstrip('&')}&" if query else f"{path}?"
    return front + urlencode(pairs) + hash_sign + fragment


def flat_pairs(setting: str, given: Pairs | None) -> list[tuple[str, str]]:
    """Names and values as str; a list or tuple of values repeats its name."""
    if given is None:
        return []
    if isinstance(given, (str, bytes)):
        raise TypeError(f"{setting}={given!r} is no dict and no list of pairs")
    flat = []
    for name, value in given.items() if isinstance(given, Mapping) else given:
        if not isinstance(name, str):
            raise TypeError(f"{setting}: the name {name!r} is not a str")
        values: Sequence[Any] = value if isinstance(value, (list, tuple)) else (value,)
        flat += [(name, _as_text(setting, name, each)) for each in values]
    return flat


def _as_text(setting: str, name: str, value: object) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return str(value)
    raise TypeError(f"{setting}: {name}={value!r} is no str, number, bool, or list of them")


def _cookies(cookies: Mapping[str, str] | None) -> list[tuple[str, str]]:
    pairs = list((cookies or {}).items())
    for name, value in pairs:
        if not isinstance(name, str) or not isinstance(value, str):
            raise TypeError(f"cookies: {name!r}: {value!r} are not both str")
        if not _TOKEN.fullmatch(name) or not _COOKIE.fullmatch(value):
            raise ValueError(f"cookies: {name}={value!r} has characters that a cookie cannot have: encode them")
    return pairs


def _seconds(setting: str, value: float | None) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{setting}={value!r} is not a number of seconds")
    if not 0 < value <= 1e9:
        raise ValueError(f"{setting}={value} is not a number of seconds above 0: None is no limit")
    return float(value)


def _bytes(setting: str, value: int | None) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{setting}={value!r} is not a number of bytes")
    if not 0 <= value < 1 << 63:
        raise ValueError(f"{setting}={value} is not a number of bytes: None is no limit")
    return value


def _redirects(redirects: bool | int) -> int:
    if redirects is True:
        return MAX_REDIRECTS
    if redirects is False:
        return 0
    if not isinstance(redirects, int):
        raise TypeError(f"redirects={redirects!r} is neither bool nor int")
    if not 0 <= redirects <= 1000:
        raise ValueError(f"redirects={redirects} is not between 0 and 1000")
    return redirects
