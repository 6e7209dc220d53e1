"""TLS of the tests' own: certificates, and what OpenSSL says and hears at the very beginning."""

from __future__ import annotations

import contextlib
import ssl
from pathlib import Path

from clsecure import process
from clsecure.process import Command

UNHEARD = b"\0unheard"
"""What a server understood of something that is no hello to it."""


def make_certificate(directory: Path, *names: str) -> Path:
    """Return a file with a key and its own certificate for these names and addresses."""
    file = directory / "certificate.pem"
    subjects = ",".join(f"{'IP' if name[0].isdigit() else 'DNS'}:{name}" for name in names)
    process.run(
        Command(
            argv=(
                "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
                "-days", "2", "-subj", "/CN=test", "-addext", f"subjectAltName={subjects}",
                "-keyout", str(directory / "key.pem"), "-out", str(directory / "cert.pem"),
            ),
            env={"PATH": process.SYSTEM_PATH},
        )
    )  # fmt: skip
    file.write_bytes((directory / "key.pem").read_bytes() + (directory / "cert.pem").read_bytes())
    return file


def client_hello(name: str | None, *, alpn: tuple[str, ...] = ()) -> bytes:
    """Return the record with which OpenSSL begins."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if alpn:
        context.set_alpn_protocols(alpn)
    outgoing = ssl.MemoryBIO()
    client = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name)
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


def understood(data: bytes) -> bytes | None:
    """Return the name that OpenSSL as a server reads in a client's first bytes, None for none.

    :data:`UNHEARD` where it does not come to reading one.
    """
    heard: list[bytes | None] = []

    def listen(_connection: object, name: str | None, _context: object) -> int:
        heard.append(None if name is None else name.encode())
        return ssl.ALERT_DESCRIPTION_INTERNAL_ERROR

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.sni_callback = listen
    incoming = ssl.MemoryBIO()
    incoming.write(data)
    with contextlib.suppress(ssl.SSLError):
        context.wrap_bio(incoming, ssl.MemoryBIO(), server_side=True).do_handshake()
    return heard[0] if heard else UNHEARD
