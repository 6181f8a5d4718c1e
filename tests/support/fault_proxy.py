"""A TCP proxy that breaks what passes through it, as networks and dying services do."""

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Coroutine
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

_CHUNK = 64 * 1024


@dataclass(frozen=True, slots=True)
class Fault:
    """What is done to the answers, and with `both_ways` to the requests too.

    `refuse`: nobody listens. `silent`: connections are accepted and nothing ever comes. `reset_after`: a reset after so
    many bytes of answer. `end_after`: a proper end after so many. `delay_s`: each piece comes so late. `piece_bytes`:
    pieces are this small. `bytes_per_s`: no faster than this. `close_delay_s`: the end of a connection comes so late.
    """

    name: str
    refuse: bool = False
    silent: bool = False
    both_ways: bool = False
    reset_after: int | None = None
    end_after: int | None = None
    delay_s: float = 0.0
    piece_bytes: int = _CHUNK
    bytes_per_s: float = float("inf")
    close_delay_s: float = 0.0


NO_FAULT = Fault("none")


class FaultProxy:
    """Listens on loopback and passes on to `target_port` there; runs in a thread of its own.

    `set` returns once the fault stands, and with it ends the connections that stood before: pools keep them otherwise.
    """

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._fault = NO_FAULT
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fault-proxy", daemon=True)
        self._connections: dict[asyncio.Task[None], tuple[asyncio.StreamWriter, ...]] = {}
        self._server: asyncio.Server | None = None
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._thread.start()
        self._do(self._listen())
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        self._do(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def set(self, fault: Fault) -> None:
        self._do(self._set(fault))

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._accepted, "127.0.0.1", self.port, limit=_CHUNK)

    async def _stop(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        connections, self._connections = self._connections, {}
        for task, writers in connections.items():
            task.cancel()
            for writer in writers:
                _reset(writer)
        await asyncio.gather(*connections, return_exceptions=True)

    async def _set(self, fault: Fault) -> None:
        await self._stop()
        self._fault = fault
        if not fault.refuse:
            await self._listen()

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections[task] = (writer,)
        try:
            if self._fault.silent:
                while await reader.read(_CHUNK):
                    pass
                return
            their_reader, their_writer = await asyncio.open_connection("127.0.0.1", self._target_port, limit=_CHUNK)
            self._connections[task] = (writer, their_writer)
            request_fault = self._fault if self._fault.both_ways else NO_FAULT
            there = asyncio.create_task(_pass_on(reader, their_writer, request_fault))
            try:
                await _pass_on(their_reader, writer, self._fault)
                await asyncio.sleep(self._fault.close_delay_s)
            finally:
                there.cancel()
                await asyncio.gather(there, return_exceptions=True)
                their_writer.close()
        except OSError:
            _reset(writer)
        except asyncio.CancelledError:
            pass  # asyncio's streams log the cancellation of a connection's task as an error
        finally:
            self._connections.pop(task, None)
            writer.close()


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, fault: Fault) -> None:
    """Until the reader's end, which is handed on."""
    passed = 0
    while data := await reader.read(fault.piece_bytes):
        await asyncio.sleep(max(fault.delay_s, len(data) / fault.bytes_per_s))
        if fault.end_after is not None and passed + len(data) > fault.end_after:
            writer.write(data[: fault.end_after - passed])
            break
        if fault.reset_after is not None and passed + len(data) > fault.reset_after:
            raise ConnectionResetError
        writer.write(data)
        await writer.drain()
        passed += len(data)
    with contextlib.suppress(OSError):
        if writer.can_write_eof() and fault is NO_FAULT:
            writer.write_eof()


def _reset(writer: asyncio.StreamWriter) -> None:
    """End the connection with a reset, whatever is still to be sent."""
    raw = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
