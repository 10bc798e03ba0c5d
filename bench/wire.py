"""Bytes that this process's TCP connections have sent, by the kernel's count (TCP_INFO of Linux)."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from pathlib import Path

_SEGMENTS_OUT, _BYTES_SENT = (136, "=I"), (200, "=Q")
"""Offsets in struct tcp_info of linux/tcp.h, which only grows at its end."""
_TCP_HEADER = 32
"""With the timestamps that Linux sends by default."""


def sent() -> tuple[int, int]:
    """Bytes of payload, and of IP and TCP headers (bare acknowledgements too), since the connections were opened."""
    payload = headers = 0
    for name in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(int(name.name))) as connection:
            if connection.type != socket.SOCK_STREAM or connection.family not in (socket.AF_INET, socket.AF_INET6):
                continue
            info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
            payload += _read(info, *_BYTES_SENT)
            ip = 20 if connection.family == socket.AF_INET else 40
            headers += (ip + _TCP_HEADER) * _read(info, *_SEGMENTS_OUT)
    return payload, headers


def _read(info: bytes, offset: int, format: str) -> int:
    return int(struct.unpack_from(format, info, offset)[0])
