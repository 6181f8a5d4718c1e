"""`python -m netns.inside FOLDER`: runs every vector inside a network and mount namespace that is its own.

In there every address of the world is this machine: web servers answer on all of them, the name server lies as each
vector says, and every attempt to connect is seen. The fetcher runs as the gateway makes it, without a seam. Prints
one JSON object: what the controls saw, and per vector what happened.
"""

import asyncio
import contextlib
import json
import os
import socket
import ssl
import subprocess
import sys
import urllib.request
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from urllib.parse import urlsplit

import trustme

from netns.name_server import NameServer
from netns.scripted_host import ScriptedHost
from netns.vectors import OWN, VECTORS, Names, Record, Vector, is_slow, opened_by, run
from netns.wire import Wire
from visionstack.fetch import Fetcher
from visionstack.urlguard import FetchPolicy

_NAME_SERVER = "192.0.2.53"
_PLAIN_PORTS, _TLS_PORTS = (80, 8080), (443, 8443)
_MB = 1024 * 1024


class World:
    """The namespace's network, name service and web servers."""

    def __init__(self, folder: Path) -> None:
        self.wire = Wire()
        self.name_server = NameServer()
        self._hosts_file = folder / "hosts"
        self._ca = trustme.CA()
        self._ca.cert_pem.write_to_path(str(folder / "ca.pem"))
        os.environ["SSL_CERT_FILE"] = str(folder / "ca.pem")
        names = {urlsplit(vector["url"]).hostname for vector in VECTORS if vector["url"].lower().startswith("https://")}
        certified = sorted(name.rstrip(".") for name in names if name and "%" not in name)
        self._certificate = self._ca.issue_cert(*certified)

    def tls(self, vectors: Sequence[Vector]) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._certificate.configure_cert(context)
        if any("1.0" in vector.get("tls", "") for vector in vectors):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1
            context.set_ciphers("ALL:@SECLEVEL=0")
        return context

    async def run(self, vectors: Sequence[Vector]) -> list[Record]:
        """These vectors at once: they must not differ about any URL or name."""
        self.name_server.names = Names(*vectors)
        hosts = [entry for vector in vectors for entry in vector.get("hosts_file", {}).items()]
        self._hosts_file.write_text("".join(f"{address} {name}\n" for name, address in hosts))
        host = ScriptedHost(answer for vector in vectors for answer in vector.get("http", ()))
        if not any("connect" in vector for vector in vectors):
            for address in ("0.0.0.0", "::"):  # noqa: S104 - every address, in a namespace of its own
                for port in _PLAIN_PORTS:
                    await host.listen(address, port)
                for port in _TLS_PORTS:
                    await host.listen(address, port, tls=self.tls(vectors))
        self.wire.attempts()
        records = await asyncio.gather(*(self._one(vector) for vector in vectors))
        attempts = [attempt for attempt in self.wire.attempts() if attempt[0] != _NAME_SERVER]
        await host.close()
        for record in records:
            record.connections, record.queries = attempts, self.name_server.names.queries
            record.requests, record.sni = host.requests, host.sni
        return records

    async def _one(self, vector: Vector) -> Record:
        # proxies and the like; they stay for as long as the vector runs, however late somebody may heed them
        os.environ.update(vector.get("env", {}))
        timeout_s = 5 if is_slow(vector) else 10  # half of what they say, which test_fetch_vectors keeps
        fetcher = Fetcher(FetchPolicy(allow_networks=opened_by(vector)), max_bytes=25 * _MB, timeout_s=timeout_s)
        try:
            return await run(vector, fetcher.fetch)
        finally:
            await fetcher.aclose()


async def controls(world: World) -> dict[str, object]:
    """What an unguarded client does here: if the traps do not close on it, they prove nothing."""
    loop = asyncio.get_running_loop()
    world.name_server.names = Names(
        {"url": "http://rebind.test/", "dns": [["93.184.216.34"], ["127.0.0.1"]]},
        {"url": "http://inside.test/", "dns": [["10.0.0.5"]]},
    )
    host = ScriptedHost()
    await host.listen("0.0.0.0", 80)  # noqa: S104 - every address, in a namespace of its own

    def look_up(name: str) -> str:
        return str(socket.getaddrinfo(name, 80, socket.AF_INET, socket.SOCK_STREAM)[0][4][0])

    def fetch(url: str) -> int:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=5) as response:
            return len(response.read())

    def knock(address: str, port: int) -> None:
        with contextlib.suppress(OSError):
            socket.create_connection((address, port), timeout=1).close()

    seen: dict[str, object] = {"rebinding": [await loop.run_in_executor(None, look_up, "rebind.test") for _ in "12"]}
    world.wire.attempts()
    seen["fetched"] = await loop.run_in_executor(None, fetch, "http://inside.test/")
    seen["fetch"] = [attempt for attempt in world.wire.attempts() if attempt[0] != _NAME_SERVER]
    for address in ("169.254.169.254", "fd00:ec2::254"):
        await loop.run_in_executor(None, knock, address, 6333)  # where nobody listens
    seen["knocks"] = world.wire.attempts()
    await host.close()
    return seen


def arrange(folder: Path) -> None:
    """Loopback up, every address local, and name service as the tests say."""
    files = {
        "resolv.conf": f"nameserver {_NAME_SERVER}\nsearch corp.test\noptions timeout:2 attempts:1\n",
        "nsswitch.conf": "hosts: files dns\n",
        "hosts": "",
    }
    for name, text in files.items():
        (folder / name).write_text(text)
        subprocess.run(["mount", "--bind", folder / name, f"/etc/{name}"], check=True)
    for arguments in (
        "link set lo up",
        "route add local 0.0.0.0/0 dev lo",
        "-6 route add local ::/0 dev lo",
    ):
        subprocess.run(["ip", *arguments.split()], check=True)


async def main(folder: Path) -> None:
    arrange(folder)
    world = World(folder)
    await world.name_server.listen(_NAME_SERVER)
    seen = await controls(world)
    slow = [vector for vector in VECTORS if is_slow(vector)]
    records = dict(zip([vector["id"] for vector in slow], await world.run(slow), strict=True))
    for vector in [*VECTORS, *OWN]:
        if vector not in slow:
            before = dict(os.environ)
            (records[vector["id"]],) = await world.run([vector])
            os.environ.clear()
            os.environ.update(before)
    print(json.dumps({"controls": seen, "records": {name: asdict(record) for name, record in records.items()}}))


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
