"""What the configuration may lack, or have too much of, to log in at the mail server."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from ssl import PROTOCOL_TLS_CLIENT, SSLContext, create_default_context
from typing import Any, Final

TOGETHER: Final = "Missing. SMTP_LOGIN and SMTP_PASSWORD go together."
FOR_OAUTH: Final = "Missing. A login with OAuth 2.0 needs it."
NOT_BOTH: Final = "A login has a password or OAuth 2.0, not both."
NO_AUTHORITIES: Final = "Cannot be read as PEM certificates"
NOT_A_PAIR: Final = "Cannot be read as a PEM file with a certificate and its private key, without a passphrase"
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
    ca_file, pair = values["smtp_ca_file"], values["smtp_client_cert"]
    if ca_file:
        yield "SMTP_CA_FILE", _fault(NO_AUTHORITIES, ca_file, partial(create_default_context, cafile=ca_file))
    if pair:
        load = SSLContext(PROTOCOL_TLS_CLIENT).load_cert_chain
        # Without a password, OpenSSL would ask the terminal for that of an encrypted key.
        yield "SMTP_CLIENT_CERT", _fault(NOT_A_PAIR, pair, partial(load, pair, password=""))
        if values["smtp_security"] and values["smtp_security"].value == "none":
            yield "SMTP_SECURITY", NEEDS_TLS


def _fault(words: str, path: Path, load: Callable[[], object]) -> str | None:
    try:
        load()
    except OSError as exc:  # ssl.SSLError is one
        return f"{words}: {path}: {exc.strerror or exc}."
    return None
