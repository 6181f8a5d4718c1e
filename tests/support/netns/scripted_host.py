"""A web server that answers as a vector's `http` table says, faults included; anything unlisted is a small PNG."""

import asyncio
import contextlib
import gzip
import io
import socket
import ssl
import struct
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from PIL import Image

_ENDLESS = b"\0" * 65536
# Stands for the bombs' gigabytes: enough for whatever inflates them to be seen.
_MOST_ZEROS = 4 * 1024 * 1024


Serve = Callable[[str, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def png(width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), "teal").save(file, "png")
    return file.getvalue()


def body_of(spec: str) -> bytes:
    """The bytes that the vectors' short notation names, such as `png:64x64` or `zeros:1000`."""
    kind, _, rest = spec.partition(":")
    match kind:
        case "png":
            size, _, half = rest.partition("-")
            data = png(*map(int, size.split("x")))
            return data[: len(data) // 2] if half else data
        case "zeros":
            return bytes(int(rest))
        case "gzip" | "gzip2":
            data = gzip.compress(bytes(min(int(rest), _MOST_ZEROS)))
            return gzip.compress(data) if kind == "gzip2" else data
        case "svg":
            return b'<svg xmlns="http://www.w3.org/2000/svg"><image href="http://127.0.0.1/"/></svg>'
        case "eps":
            return b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\nshowpage\n"
        case "text" | "raw":
            return rest.encode("latin-1")
        case "chunk-ext":
            return b"1;" + b"e" * int(rest) + b"\r\nx\r\n0\r\n\r\n"
    raise ValueError(spec)


class WebServer:
    """Hands each connection, its first request's head already read, to `serve`; ends them all when closed."""

    def __init__(self, serve: Serve) -> None:
        self.requests: list[str] = []
        self.sni: list[str | None] = []
        self.connections = 0
        self._serve = serve
        self._servers: list[asyncio.Server] = []
        self._clients: set[asyncio.Task[None]] = set()

    async def listen(self, host: str = "127.0.0.1", port: int = 0, *, tls: ssl.SSLContext | None = None) -> int:
        """Returns the port."""
        if tls is not None:
            tls.sni_callback = lambda _, name, __: self.sni.append(name)
        server = await asyncio.start_server(self._accept, host, port, ssl=tls)
        self._servers.append(server)
        return int(server.sockets[0].getsockname()[1])

    async def close(self) -> None:
        for server in self._servers:
            server.close()
        for _ in range(3):  # what was just accepted reaches `_accept`
            await asyncio.sleep(0)
        while clients := set(self._clients):
            for client in clients:
                client.cancel()
            await asyncio.wait(clients)
        for _ in range(3):  # what was aborted gives up its socket
            await asyncio.sleep(0)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        client = asyncio.create_task(self._one(reader, writer))
        self._clients.add(client)
        client.add_done_callback(self._clients.discard)

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                self.requests.append(head)
                await self._serve(head, reader, writer)
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
        except BaseException:
            writer.transport.abort()
            raise


class ScriptedHost(WebServer):
    """Answers from the table; keeps each request's head and each TLS client's SNI."""

    def __init__(self, answers: Iterable[dict[str, Any]] = (), *, time_scale: float = 1.0) -> None:
        super().__init__(self._respond)
        self._answers = {answer["url"]: answer for answer in answers}
        self._time_scale = time_scale

    async def _respond(self, head: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._answer(self._answer_to(head, writer), reader, writer)

    def _answer_to(self, head: str, writer: asyncio.StreamWriter) -> dict[str, Any]:
        request_line, *lines = head.split("\r\n")
        host = next(line[6:] for line in lines if line.lower().startswith("host: "))
        scheme = "http" if writer.get_extra_info("ssl_object") is None else "https"
        default = {"headers": {"Content-Type": "image/png"}, "body": "png:64x64"}
        return self._answers.get(f"{scheme}://{host}{request_line.split(' ')[1]}", default)

    async def _answer(self, answer: dict[str, Any], reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if answer.get("never_answer"):
            await reader.read()
        if answer.get("drip"):
            for byte in b"HTTP/1.1 200 OK\r\nX-Slow: " + b"a" * 1000:
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(answer["interval_s"] * self._time_scale)
        await asyncio.sleep(answer.get("delay_s", 0) * self._time_scale)
        if "raw" in answer:
            writer.write(answer["raw"].encode("latin-1"))
            await writer.drain()
            return

        spec, _, then = answer.get("body", "").partition(",then-")
        headers = [(name, _value(value)) for name, value in answer.get("headers", {}).items()]
        headers += [(name, _value(value)) for name, value in answer.get("headers_list", [])]
        headers += [(f"X-{number}", "x") for number in range(answer.get("headers_count", 0))]
        if answer.get("headers_count"):
            headers.append(("Content-Type", "image/png"))
        names = {name.lower() for name, _ in headers}
        body = b"" if spec in ("", "endless") else body_of(spec)
        if spec == "endless":
            headers.append(("Transfer-Encoding", "chunked"))
        elif "transfer-encoding" in names and spec.partition(":")[0] not in ("raw", "chunk-ext"):
            body = b"%x\r\n%b\r\n" % (len(body), body) + (b"" if then else b"0\r\n\r\n")
        elif not names & {"content-length", "transfer-encoding"} and answer.get("status") != 204:
            headers.append(("Content-Length", str(len(body))))
        head = [f"HTTP/1.1 {answer.get('status', 200)} -", *(f"{name}: {value}" for name, value in headers)]
        writer.write("\r\n".join(head).encode("latin-1") + b"\r\n\r\n" + body)
        await writer.drain()
        while spec == "endless":
            writer.write(b"%x\r\n%b\r\n" % (len(_ENDLESS), _ENDLESS))
            await writer.drain()
        if then == "hang":
            await reader.read()
        if then == "reset":
            linger = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)


def _value(text: str) -> str:
    """A header's value; `… + 1000 x 'a'` stands for a long one."""
    start, plus, repeat = text.partition(" + ")
    if not plus:
        return text
    count, _, character = repeat.partition(" x ")
    return start + character.strip("'") * int(count)
