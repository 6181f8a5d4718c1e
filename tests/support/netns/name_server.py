"""A lying name server: answers A and AAAA from a zone that changes between lookups, over UDP and TCP."""

import asyncio
import struct
from ipaddress import ip_address
from typing import cast

from netns.vectors import Names

_A, _AAAA = 1, 28
_NAME_ERROR, _SERVER_FAILURE = 3, 2
_MAX_UDP_BYTES = 512
_RESPONSE, _TRUNCATED = 0x8180, 0x0200


class NameServer(asyncio.DatagramProtocol):
    """`names` is the zone; exchange it between tests."""

    def __init__(self) -> None:
        self.names = Names()
        self._transport: asyncio.DatagramTransport | None = None

    async def listen(self, host: str) -> None:
        loop = asyncio.get_running_loop()
        await loop.create_datagram_endpoint(lambda: self, local_addr=(host, 53))
        await asyncio.start_server(self._serve_tcp, host, 53)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, address: tuple[str, int]) -> None:
        assert self._transport is not None
        answer = self._answer(data)
        if len(answer) > _MAX_UDP_BYTES:
            self._transport.sendto(_truncated(data), address)  # the client asks again over TCP
        else:
            self._transport.sendto(answer, address)

    async def _serve_tcp(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while size := await reader.read(2):
                answer = self._answer(await reader.readexactly(int.from_bytes(size)))
                writer.write(len(answer).to_bytes(2) + answer)
        finally:
            writer.close()

    def _answer(self, query: bytes) -> bytes:
        name, record, question = _question(query)
        records = []
        if record in (_A, _AAAA):
            version = 4 if record == _A else 6
            addresses = [ip_address(text) for text in self.names.look_up(name, "A" if version == 4 else "AAAA")]
            exists = bool(addresses)
            for address in addresses:
                if address.version == version:
                    records.append(struct.pack("!HHHIH", 0xC00C, record, 1, 0, len(address.packed)) + address.packed)
        else:
            exists = False
        code = _SERVER_FAILURE if self.names.fails(name) else 0 if exists else _NAME_ERROR
        head = struct.pack("!HHHHHH", int.from_bytes(query[:2]), _RESPONSE | code, 1, len(records), 0, 0)
        return head + question + b"".join(records)


def _question(query: bytes) -> tuple[str, int, bytes]:
    labels, position = [], 12
    while length := query[position]:
        labels.append(query[position + 1 : position + 1 + length].decode("latin-1"))
        position += 1 + length
    end = position + 5
    return ".".join(labels), int.from_bytes(query[position + 1 : position + 3]), query[12:end]


def _truncated(query: bytes) -> bytes:
    _, _, question = _question(query)
    return query[:2] + struct.pack("!HHHHH", _RESPONSE | _TRUNCATED, 1, 0, 0, 0) + question
