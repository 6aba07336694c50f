"""The clients in docs/api.md, run as they stand."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys

from tests.client import KEY, PROTECTED, ROOT, SECRET, USER, Client
from tests.fixtures import Start
from tests.programs import needed


def example(language: str) -> str:
    """Return the client in this language."""
    clients = (ROOT / "docs/api.md").read_text().split("### Clients")[1].split("\n## ")[0]
    found = re.search(rf"```{language}\n(.*?)```", clients, re.DOTALL)
    assert found
    return found[1]


async def run_example(client: Client, program: str, code: str) -> str:
    """Run a client, with the address of the service changed; return its output."""
    process = await asyncio.create_subprocess_exec(
        *(*program.split(), code.replace("http://127.0.0.1:8080", str(client.make_url("")).rstrip("/"))),
        env={"PATH": os.environ["PATH"], "API_KEY": KEY, "USER_TOKEN_SECRET": SECRET},
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate()
    assert process.returncode == 0
    return out.decode()


async def test_the_example_clients_work(start: Start) -> None:
    for name in ("curl", "node", "openssl"):
        needed(name)
    client = await start(**PROTECTED)
    assert json.loads(await run_example(client, "sh -c", example("sh"))) == {"success": True}
    signed = await run_example(client, f"{sys.executable} -c", example("python"))
    code = f"const token = {signed.strip()!r};" + example("js")
    out = await run_example(client, "node --input-type=module -e", code)
    assert out.startswith("2 unread of 2")
    headers = {"Authorization": f"Bearer {KEY}"}
    body = await (await client.get(f"/list?user_id={USER}", headers=headers)).json()
    assert body["data"]["new"] == 0
