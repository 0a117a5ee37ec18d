"""Options that several commands have, and what they mean."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import urlsplit

from pyhv._cli.output import CommandError

if TYPE_CHECKING:
    from pyhv import HvWebServer

    Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

#: Where --dashboard and --metrics are.
DASHBOARD = "/_pyhv"
METRICS = "/metrics"


def command(
    commands: Commands, name: str, run: Callable[[argparse.Namespace], int], *, help: str, description: str, epilog: str
) -> argparse.ArgumentParser:
    """Adds a command whose help ends with an epilog as it stands."""
    parser = commands.add_parser(
        name,
        help=help,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(run=run)
    parser.add_argument(
        "--color", choices=("auto", "always", "never"), default="auto", help="colours (auto: on a terminal)"
    )
    return parser


# Types of arguments


def seconds(text: str) -> float:
    """A time above 0."""
    value = float(text)
    if not (math.isfinite(value) and value > 0):
        raise ValueError
    return value


def seconds_or_zero(text: str) -> float:
    """A time, 0 included."""
    value = float(text)
    if not (math.isfinite(value) and value >= 0):
        raise ValueError
    return value


def positive(text: str) -> int:
    """A whole number above 0."""
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def port(text: str) -> int:
    """A port; 0 is one that the system chooses."""
    value = int(text)
    if not 0 <= value < 1 << 16:
        raise ValueError
    return value


def header(text: str) -> tuple[str, str]:
    """`Name: value`."""
    name, colon, value = text.partition(":")
    if not colon or not name.strip():
        raise argparse.ArgumentTypeError(f"{text!r} is not 'Name: value'")
    return name.strip(), value.strip()


# Servers


def add_address(parser: argparse.ArgumentParser, default: int) -> None:
    """--host and --port."""
    parser.add_argument(
        "-p", "--port", type=port, default=default, metavar="N", help=f"port to listen on ({default}; 0: a free one)"
    )
    parser.add_argument(
        "--host", default="127.0.0.1", metavar="NAME", help="address to listen on (127.0.0.1; 0.0.0.0: all of IPv4)"
    )


def add_inside(parser: argparse.ArgumentParser) -> None:
    """--dashboard and --metrics."""
    parser.add_argument(
        "--dashboard", action="store_true", help=f"a page for this machine that shows what goes on: {DASHBOARD}"
    )
    parser.add_argument("--metrics", action="store_true", help=f"the same as text for Prometheus: {METRICS}")


def enable_inside(server: HvWebServer, options: argparse.Namespace) -> None:
    """What they ask for."""
    if options.dashboard:
        server.enable_dashboard(DASHBOARD)
    if options.metrics:
        server.enable_metrics(METRICS)


def is_inside(url: str) -> bool:
    """Whether a request was for one of them: the page asks four times a second."""
    return url in (DASHBOARD, f"{DASHBOARD}/stats.json", METRICS)


def inside_lines(base: str, options: argparse.Namespace) -> list[str]:
    """Where they are, for the first lines that are printed."""
    lines = [f"  {base}{DASHBOARD} shows what goes on"] if options.dashboard else []
    return [*lines, f"  {base}{METRICS} tells Prometheus"] if options.metrics else lines


def cannot_listen(error: OSError) -> CommandError:
    """For what `start` raises."""
    text = error.strerror or str(error)
    return CommandError(f"{text} (--port 0 takes a free port)" if "in use" in text else text)


def url_host(host: str) -> str:
    """A host that was listened on, as a URL has it: one by which it can be reached."""
    if host in ("0.0.0.0", "::", ""):
        return "localhost"
    return f"[{host}]" if ":" in host else host


# Clients


def add_tls(parser: argparse.ArgumentParser) -> None:
    """Whom to trust, and what to show."""
    group = parser.add_argument_group("TLS")
    trust = group.add_mutually_exclusive_group()
    trust.add_argument("--ca", metavar="FILE", help="trust the authorities in this PEM file instead of the system's")
    trust.add_argument("--fingerprint", metavar="HEX", help="trust the one certificate with this SHA-256")
    trust.add_argument(
        "-k",
        "--insecure",
        action="store_true",
        help="trust whoever answers: anybody in between can read all",
    )
    group.add_argument("--cert", metavar="FILE", help="PEM file with a certificate to show to the server")
    group.add_argument("--key", metavar="FILE", help="its key, unless it is in the same file")


def tls_settings(options: argparse.Namespace, url: str) -> dict[str, Any]:
    """What `add_tls` added, as named arguments of the clients."""
    given = {
        "--ca": options.ca,
        "--fingerprint": options.fingerprint,
        "--insecure": options.insecure or None,
        "--cert": options.cert,
        "--key": options.key,
    }
    used = [name for name, value in given.items() if value is not None]
    if used and urlsplit(url).scheme not in ("wss", "https"):
        raise CommandError(f"{used[0]} is for wss:// and https:// URLs, not for {url}", 2)
    if options.key is not None and options.cert is None:
        raise CommandError("--key needs --cert", 2)
    return {
        "ca_file": options.ca,
        "fingerprint": options.fingerprint,
        "client_certfile": options.cert,
        "client_keyfile": options.key,
        "dangerous_accept_any_certificate": options.insecure,
    }


#: Behind an error about the server's certificate.
TRUST_HINT = "--ca FILE trusts the authority in FILE, --fingerprint HEX one certificate, --insecure anybody"


def complete_url(text: str, default: str, schemes: dict[str, str]) -> str:
    """A URL from what people type: `localhost:9090/x`, `:9090`.

    :param default: the scheme of one that has none.
    :param schemes: those that will do, and what is meant by them.
    """
    scheme, separator, rest = text.partition("://")
    if not separator:
        scheme, rest = default, text
    if rest.startswith(":"):
        rest = f"localhost{rest}"
    meant = schemes.get(scheme.lower())
    if meant is None or not rest:
        raise CommandError(f"{text!r} is not a URL of {', '.join(f'{name}://' for name in schemes)}", 2)
    return f"{meant}://{rest}"
