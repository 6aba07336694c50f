"""The command `health`, which containers run as this file alone: it starts in a tenth of the time."""

import os
import sys
from contextlib import closing
from http.client import HTTPConnection, HTTPException
from typing import Final

LOOPBACK_OF: Final = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - only compared with


def check_health(host: str, port: int) -> int:
    """Ask `/healthz`, without any proxy; return 0, or 1 and say why if the service does not answer."""
    host = LOOPBACK_OF.get(host, host)
    try:
        with closing(HTTPConnection(host, port, timeout=4)) as connection:
            connection.request("GET", "/healthz", headers={"Host": "localhost"})
            if (status := connection.getresponse().status) == 200:
                return 0
        fault = f"The answer from {host} port {port} is {status}."
    except (OSError, HTTPException) as exc:
        fault = f"No answer from {host} port {port}: {exc or type(exc).__name__}."
    print(fault, file=sys.stderr)  # noqa: T201 - for the operator
    return 1


if __name__ == "__main__":
    sys.exit(check_health(os.environ.get("HOST", "").strip(), int(os.environ.get("PORT", "").strip() or "8080")))
