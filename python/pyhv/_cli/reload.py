"""Pages that reload themselves when a file changes: what `pyhv serve --reload` adds to serving a folder.

HTML is sent by a handler, with a script behind it; everything else by `resp.file`, with its ranges. The script keeps a
WebSocket open, by which the server says when files have changed. It reloads the page, or, if only style sheets have
changed, those alone.

Each state of the folder that was seen has a version, and the script of a page names the one that the page is from: a
page that was loaded just before a change, or connects again after the server was started anew, notices that it is old.

Changes are found by looking at every file, from time to time: it works on every file system, network and virtual ones
included, which inotify does not.
"""

from __future__ import annotations

import codecs
import errno
import hashlib
import html
import json
import os
import re
import secrets
import stat
import time
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from urllib.parse import quote, unquote

from pyhv import HttpRequest, HttpResponse, WebSocketChannel

__all__ = ["SCRIPT_PATH", "SOCKET_PATH", "Pages", "Watcher"]

SCRIPT_PATH = "/.pyhv/reload.js"
SOCKET_PATH = "/.pyhv/reload"

#: Served where a page can read it, so that a page's Content-Security-Policy of 'self' lets it run.
SCRIPT = """\
// pyhv serve --reload: reloads the page when the server says that files have changed.
(() => {
  const mine = document.currentScript;
  let version = mine.dataset.version;
  const key = "pyhv-reload";
  const url = new URL("SOCKET", mine.src);
  url.protocol = url.protocol.replace("http", "ws");
  let pause = 250;  // milliseconds until the next attempt

  function styles() {
    for (const old of document.querySelectorAll('link[rel~="stylesheet"][href]')) {
      const href = new URL(old.href);
      if (href.origin !== url.origin.replace("ws", "http")) continue;
      href.searchParams.set("pyhv", version);
      const fresh = old.cloneNode();
      fresh.href = href;
      // The old one stays until the new one is there: no moment without.
      fresh.onload = fresh.onerror = () => old.remove();
      old.after(fresh);
    }
  }

  function told(news) {
    if (news.version === version) return;
    if (news.styles && news.since === version) {
      version = news.version;
      styles();
      return;
    }
    // Once for each version: a page that comes out of some cache would reload for ever.
    if (sessionStorage.getItem(key) === news.version) return;
    sessionStorage.setItem(key, news.version);
    location.reload();
  }

  function connect() {
    const socket = new WebSocket(url);
    socket.onopen = () => { pause = 250; };
    socket.onmessage = (message) => {
      mine.dataset.connected = "yes";
      told(JSON.parse(message.data));
    };
    socket.onclose = () => {
      setTimeout(connect, pause);
      pause = Math.min(pause * 2, 5000);
    };
  }
  connect();
})();
""".replace("SOCKET", SOCKET_PATH)

_HTML = (".html", ".htm")
_HTML_TYPE = "text/html; charset=utf-8"
#: A larger page is sent as it is: handlers keep it in memory.
_MOST_HTML = 8 << 20  # bytes
_MOST_LISTED = 10_000
_STYLES = (".css",)

#: Names that Windows takes for devices, and what else names no file there.
_DEVICE = re.compile(r"(?:con|prn|aux|nul|conin\$|conout\$|(?:com|lpt)[0-9\xb9\xb2\xb3])\s*(?:\..*)?", re.IGNORECASE)

Print = tuple[int, int, int]


def _is_plain(name: str) -> bool:
    """Whether a decoded segment of a path names a file that may be served, as `HvWebServer.static` decides it."""
    if not name or name.startswith(".") or name.endswith((".", " ")) or any(c in "/\\:\0" for c in name):
        return False
    return not _DEVICE.fullmatch(name)


class Watcher:
    """Looks for changes below a folder, a little at a time.

    :param root: the folder.
    :param pause: shortest time between two rounds, in seconds.
    """

    #: The time of looking is at most this part of all time, on average.
    _SHARE = 0.03
    #: Seconds of looking without a pause: pages are waiting meanwhile.
    _SLICE = 0.005

    def __init__(self, root: Path, pause: float = 0.3) -> None:
        self._root = root
        self._pause = pause
        self._boot = secrets.token_hex(4)
        self._number = 0
        self._seen: dict[str, Print] = dict(self._walk())
        self._round: Iterator[tuple[str, Print]] | None = None
        self._found: dict[str, Print] = {}
        self._busy = 0.0  # seconds that this round has taken
        self._next = time.monotonic() + pause

    @property
    def version(self) -> str:
        """Of what was seen last. Another process has others."""
        return f"{self._boot}-{self._number}"

    @property
    def wait(self) -> float:
        """Seconds until `look` has something to do."""
        return max(0.0, self._next - time.monotonic())

    def look(self) -> list[str] | None:
        """Goes on looking; returns the changed paths, relative to the folder, when a round has ended and found some."""
        start = time.monotonic()
        if start < self._next:
            return None
        if self._round is None:
            self._round, self._found, self._busy = self._walk(), {}, 0.0
        for path, fingerprint in self._round:
            self._found[path] = fingerprint
            if time.monotonic() - start > self._SLICE:
                self._busy += time.monotonic() - start
                # Where a round takes slices, there are pauses between these.
                self._next = time.monotonic() + self._SLICE
                return None
        self._round = None
        self._busy += time.monotonic() - start
        self._next = time.monotonic() + max(self._pause, self._busy / self._SHARE)
        before, self._seen = self._seen, self._found
        changed = sorted(path for path in before.keys() | self._seen.keys() if before.get(path) != self._seen.get(path))
        if not changed:
            return None
        self._number += 1
        return changed

    def _walk(self) -> Iterator[tuple[str, Print]]:
        """Every file that may be served, links to files followed, and what of it changes when it changes."""
        folders = [""]
        while folders:
            folder = folders.pop()
            try:
                entries = os.scandir(self._root / folder)
            except OSError:
                continue  # gone, or not ours to read
            with entries:
                for entry in entries:
                    if not _is_plain(entry.name):
                        continue
                    path = f"{folder}{entry.name}"
                    try:
                        if entry.is_dir(follow_symlinks=False):
                            folders.append(f"{path}/")
                            continue
                        found = entry.stat()
                    except OSError:
                        continue
                    if stat.S_ISREG(found.st_mode):
                        yield path, (found.st_mtime_ns, found.st_size, found.st_ino)


class Pages:
    """Answers for a folder whose pages reload themselves.

    :param root: the folder.
    :param home_page: the file that a folder is answered with.
    :param listing: whether a folder without one is listed.
    :param cache_control: for everything.
    :param pause: see `Watcher`.
    """

    def __init__(self, root: Path, *, home_page: str, listing: bool, cache_control: str, pause: float = 0.3) -> None:
        self._root = Path(os.path.realpath(root))
        self._home_page = home_page
        self._listing = listing
        self._cache_control = cache_control
        self.watcher = Watcher(self._root, pause)

    def look(self) -> tuple[list[str], str] | None:
        """As `Watcher.look`: what has changed, and the message to the pages about it."""
        since = self.watcher.version
        changed = self.watcher.look()
        if changed is None:
            return None
        styles = all(path.lower().endswith(_STYLES) for path in changed)
        return changed, json.dumps({"version": self.watcher.version, "since": since, "styles": styles})

    def greet(self, channel: WebSocketChannel) -> None:
        """Tells a page that has connected what the newest version is."""
        channel.send(json.dumps({"version": self.watcher.version}))

    def script(self, request: HttpRequest, response: HttpResponse) -> int:
        """Answers with the script."""
        response.data(SCRIPT.encode(), "text/javascript; charset=utf-8")
        response.set_header("Cache-Control", "no-cache")
        return 200

    def answer(self, request: HttpRequest, response: HttpResponse) -> int:
        """Answers for a path, as `HvWebServer.static` would but for the script."""
        target, _, query = request.url.partition("?")
        path = self._wanted(target)
        if path is None:
            return self._missing(request, response)
        try:
            if path.is_dir():
                if not target.endswith("/"):
                    response.redirect(f"{target}/" + (f"?{query}" if query else ""), 301)
                    return 301
                home = path / self._home_page
                if home.is_file() and self._is_inside(home):
                    return self._file(home, request, response)
                return self._list(path, target, request, response)
            if path.is_file() and not target.endswith("/"):
                return self._file(path, request, response)
        except PermissionError:
            response.text("403 Forbidden\n", 403)
            return 403
        except OSError as error:
            # Gone since, or what cannot be a name here.
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL):
                raise
        return self._missing(request, response)

    def _wanted(self, target: str) -> Path | None:
        """What a request's raw path names inside the folder; None for what there cannot be."""
        segments = target.split("/")[1:]
        if segments and not segments[-1]:
            segments.pop()
        # Each is decoded once, after splitting: an encoded slash is part of a name, and no name has one.
        names = [unquote(segment, errors="surrogateescape") for segment in segments]
        if not all(map(_is_plain, names)):
            return None
        path = self._root.joinpath(*names)
        return path if self._is_inside(path) else None

    def _is_inside(self, path: Path) -> bool:
        """Whether symbolic links leave it in the folder."""
        try:
            return Path(os.path.realpath(path)).is_relative_to(self._root)
        except (OSError, ValueError):
            return False

    def _file(self, path: Path, request: HttpRequest, response: HttpResponse) -> int:
        if path.suffix.lower() in _HTML and path.stat().st_size <= _MOST_HTML:
            return self._page(path.read_bytes(), request, response)
        response.file(path)
        response.set_header("Cache-Control", self._cache_control)
        return 200

    def _page(self, content: bytes, request: HttpRequest, response: HttpResponse, status: int = 200) -> int:
        """Sends a page with the script behind it: whatever a page looks like, that is a place where a script runs, and
        nothing before it moves."""
        if not content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            tag = f'<script src="{SCRIPT_PATH}" data-version="{self.watcher.version}"></script>\n'
            content += tag.encode()
        # A part of a page that may be another next time is of no use: without ranges the answer to any is all of it.
        response.set_header("Cache-Control", "no-cache")
        if status == 200:
            etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
            response.set_header("ETag", etag)
            if _matches(request.headers.get("If-None-Match", ""), etag):
                response.status = HTTPStatus.NOT_MODIFIED
                return 304
        response.data(content, _HTML_TYPE, status)
        return status

    def _missing(self, request: HttpRequest, response: HttpResponse) -> int:
        text = "<!DOCTYPE html>\n<title>404 Not Found</title>\n<h1>404 Not Found</h1>\n"
        return self._page(text.encode(), request, response, 404)

    def _list(self, folder: Path, target: str, request: HttpRequest, response: HttpResponse) -> int:
        """The page that the native side makes, with the script."""
        if not self._listing:
            return self._missing(request, response)
        entries = []
        with os.scandir(folder) as found:
            for entry in found:
                if not _is_plain(entry.name) or (entry.is_symlink() and not self._is_inside(folder / entry.name)):
                    continue
                if entry.is_dir() or entry.is_file():
                    entries.append((not entry.is_dir(), entry.name))
        entries.sort()
        title = html.escape(unquote(target))
        lines = [
            '<!DOCTYPE html>\n<html>\n<head>\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width">\n<meta name="color-scheme" content="light dark">',
            f"<title>{title}</title>\n</head>\n<body>\n<h1>{title}</h1>\n<ul>",
        ]
        if folder != self._root:
            lines.append('<li><a href="../">../</a></li>')
        for is_file, name in entries[:_MOST_LISTED]:
            slash = "" if is_file else "/"
            link = quote(name.encode(errors="surrogateescape"), safe="") + slash
            shown = html.escape(name.encode(errors="surrogateescape").decode(errors="replace") + slash)
            lines.append(f'<li><a href="{link}">{shown}</a></li>')
        lines.append("</ul>" if len(entries) <= _MOST_LISTED else "</ul>\n<p>and more</p>")
        lines.append("</body>\n</html>\n")
        return self._page("\n".join(lines).encode(errors="replace"), request, response)


def _matches(field: str, etag: str) -> bool:
    """If-None-Match (RFC 9110 section 13.1.2), by the weak comparison."""
    tags = [tag.strip().removeprefix("W/") for tag in field.split(",")]
    return field.strip() == "*" or etag in tags
