"""Identities of NATS for tests: an operator, an account and a user, as nsc makes them, with openssl's Ed25519."""

from __future__ import annotations

import base64
import binascii
import json
import subprocess
import time
from pathlib import Path
from typing import Any

# First bytes of keys (github.com/nats-io/nkeys): with them the text begins with O, A, U, and a seed with S before that.
OPERATOR, ACCOUNT, USER, SEED = 14 << 3, 0, 20 << 3, 18 << 3


def _text(data: bytes) -> str:
    data += binascii.crc_hqx(data, 0).to_bytes(2, "little")
    return base64.b32encode(data).decode().rstrip("=")


def _openssl(*arguments: str) -> bytes:
    return subprocess.run(["openssl", *arguments], check=True, capture_output=True).stdout


class Key:
    """A pair of keys."""

    def __init__(self, folder: Path, prefix: int) -> None:
        self.file = folder / f"{prefix}.pem"
        _openssl("genpkey", "-algorithm", "ed25519", "-out", str(self.file))
        # Both end with the 32 bytes that it is about.
        secret = _openssl("pkey", "-in", str(self.file), "-outform", "DER")[-32:]
        public = _openssl("pkey", "-in", str(self.file), "-pubout", "-outform", "DER")[-32:]
        self.public = _text(bytes([prefix]) + public)
        self.seed = _text(bytes([SEED | prefix >> 5, (prefix & 31) << 3]) + secret)

    def token(self, subject: Key, name: str, claims: dict[str, Any]) -> str:
        """A JWT about `subject`."""

        def part(data: bytes) -> str:
            return base64.urlsafe_b64encode(data).decode().rstrip("=")

        body = {
            "jti": name,
            "iat": int(time.time()),
            "iss": self.public,
            "name": name,
            "sub": subject.public,
            "nats": {"version": 2, **claims},
        }
        head = {"typ": "JWT", "alg": "ed25519-nkey"}
        signed = ".".join(part(json.dumps(value).encode()) for value in (head, body))
        file = self.file.with_suffix(".signed")
        file.write_text(signed)
        signature = _openssl("pkeyutl", "-sign", "-inkey", str(self.file), "-rawin", "-in", str(file))
        return f"{signed}.{part(signature)}"


def make_credentials(folder: Path) -> tuple[Path, Path]:
    """A configuration for nats-server that lets one user in, and that user's file."""
    folder.mkdir()
    operator, account, user = (Key(folder, prefix) for prefix in (OPERATOR, ACCOUNT, USER))
    limits = dict.fromkeys(["subs", "data", "payload", "imports", "exports", "conn", "leaf"], -1)
    grants: dict[str, Any] = {"type": "account", "limits": {**limits, "wildcards": True}, "default_permissions": {}}
    configuration = folder / "server.conf"
    configuration.write_text(
        f"operator: {operator.token(operator, 'operator', {'type': 'operator'})}\n"
        "resolver: MEMORY\n"
        f"resolver_preload: {{ {account.public}: {operator.token(account, 'account', grants)} }}\n"
    )
    rights = {"type": "user", "pub": {}, "sub": {}, "subs": -1, "data": -1, "payload": -1}
    file = folder / "user.creds"
    file.write_text(
        f"-----BEGIN NATS USER JWT-----\n{account.token(user, 'user', rights)}\n------END NATS USER JWT------\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{user.seed}\n------END USER NKEY SEED------\n"
    )
    return configuration, file
