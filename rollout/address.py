"""This machine's addresses."""

from __future__ import annotations

import socket

LOOPBACK = "127.0.0.1"
EVERYWHERE = "0.0.0.0"  # listens on all addresses of the machine


def address_towards(host: str) -> str:
    """This machine's own IPv4 address on the way to `host`. Raises: OSError if no way leads there."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:  # connecting it sends nothing
        probe.connect((host, 9))
        return probe.getsockname()[0]
