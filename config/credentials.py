"""What the configuration may lack, or have too much of, to log in at the mail server."""

from __future__ import annotations

import ssl
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

TOGETHER: Final = "Missing. SMTP_LOGIN and SMTP_PASSWORD go together."
FOR_OAUTH: Final = "Missing. A login with OAuth 2.0 needs it."
NOT_BOTH: Final = "A login has a password or OAuth 2.0, not both."
NOT_A_PAIR: Final = "Is not a PEM file with a certificate and its private key, without a passphrase."
NEEDS_TLS: Final = "Must not be none with SMTP_CLIENT_CERT, which only TLS can show."


def credential_faults(given: set[str], values: Mapping[str, Any]) -> Iterator[tuple[str, str | None]]:
    """Yield variables and their faults, for the settings that are `given` and the values of all."""
    oauth = {name for name in given if name.startswith("smtp_oauth_")}
    secret = set() if "smtp_oauth_refresh_token" in oauth else {"smtp_oauth_client_secret"}
    needed = {"smtp_oauth_token_url", "smtp_oauth_client_id", *secret} if oauth else {"smtp_password"}
    if given & {"smtp_login", "smtp_password", *oauth}:
        yield from ((name.upper(), FOR_OAUTH if oauth else TOGETHER) for name in {"smtp_login", *needed} - given)
    if oauth and "smtp_password" in given:
        yield "SMTP_PASSWORD", NOT_BOTH
    if path := values["smtp_ca_file"]:
        yield "SMTP_CA_FILE", _ca_fault(path)
    if path := values["smtp_client_cert"]:
        yield "SMTP_CLIENT_CERT", _cert_fault(path)
        if values["smtp_security"] and values["smtp_security"].value == "none":
            yield "SMTP_SECURITY", NEEDS_TLS


def _ca_fault(path: Path) -> str | None:
    try:
        ssl.create_default_context(cafile=path)
    except OSError as exc:  # ssl.SSLError is one
        return f"Cannot be read as PEM certificates: {exc.strerror or exc}."
    return None


def _cert_fault(path: Path) -> str | None:
    try:
        ssl.create_default_context().load_cert_chain(path, password="")  # without one, OpenSSL would ask the terminal
    except OSError as exc:
        return NOT_A_PAIR if isinstance(exc, ssl.SSLError) else f"Cannot be read: {exc.strerror}."
    return None
