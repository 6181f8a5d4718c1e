"""Every attempt to open a TCP connection, seen on the loopback interface of a network namespace of its own."""

import contextlib
import socket
from ipaddress import IPv4Address, IPv6Address

_ETH_P_ALL = 3
_ETHERNET_HEADER = 14
_IPV4, _IPV6, _TCP = 0x0800, 0x86DD, 6
_SYN, _ACK = 0x02, 0x10


class Wire:
    """Needs the right to open packet sockets. A SYN counts, whether or not anybody answers it."""

    def __init__(self, interface: str = "lo") -> None:
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 24)
        self._socket.bind((interface, 0))
        self._socket.setblocking(False)

    def attempts(self) -> list[tuple[str, int]]:
        """The addresses and ports dialled since the last call."""
        found = []
        with contextlib.suppress(BlockingIOError):
            while True:
                frame, (_, _, direction, *_) = self._socket.recvfrom(256)
                # loopback shows each packet twice
                if direction == socket.PACKET_OUTGOING and (attempt := _syn(frame)):
                    found.append(attempt)
        return found


def _syn(frame: bytes) -> tuple[str, int] | None:
    kind = int.from_bytes(frame[12:14])
    packet = frame[_ETHERNET_HEADER:]
    if kind == _IPV4 and packet[9] == _TCP:
        segment, address = packet[(packet[0] & 15) * 4 :], str(IPv4Address(packet[16:20]))
    elif kind == _IPV6 and packet[6] == _TCP:
        segment, address = packet[40:], str(IPv6Address(packet[24:40]))
    else:
        return None
    if segment[13] & (_SYN | _ACK) != _SYN:
        return None
    return address, int.from_bytes(segment[2:4])
