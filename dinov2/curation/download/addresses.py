"""Connections to vetted addresses only: whatever URLs, redirects and name servers say, none is private.

httpcore, the engine below httpx, is used directly: only there can the address that is really connected to be the one
that was checked. A name is looked up here and its address is handed down as an address, so a name server that
answers otherwise the second time (DNS rebinding) is not asked a second time. IPv6 networks that reach IPv4 by NAT64
prefixes alone are not supported: such an address says nothing about where it leads.
"""

import asyncio
import ipaddress
import socket
import time
from collections.abc import Iterable
from typing import Any, cast

import httpcore

LOOKUP_VALID_S = 300.0  # a long run follows hosts that move
_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
_TUNNELS = (ipaddress.IPv6Network("2002::/16"), ipaddress.IPv6Network("2001::/32"))  # 6to4, Teredo: lead to any IPv4
MAX_ADDRESSES = 2  # tried for one connection


class PrivateAddressError(Exception):
    """A host that has an address outside the public internet."""


class NoSuchHostError(Exception):
    """A name that has no address, and won't have one soon."""


def is_public(address: str) -> bool:
    """Whether an IP address is of the public internet: not private, loopback, link-local, multicast or reserved."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            return is_public(str(ip.ipv4_mapped))
        if ip not in _GLOBAL_UNICAST or any(ip in tunnel for tunnel in _TUNNELS):
            return False
    return ip.is_global and not ip.is_multicast


class GuardedBackend(httpcore.AsyncNetworkBackend):
    """Opens TCP connections, after a look at the address; remembers look-ups for some minutes."""

    def __init__(self, *, allow_private: bool) -> None:
        self._allow_private = allow_private
        self._plain = cast(httpcore.AsyncNetworkBackend, httpcore.AnyIOBackend())
        self._lookups: dict[str, tuple[float, asyncio.Task[list[str]]]] = {}

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect to the first address of `host` that answers; raises PrivateAddressError and NoSuchHostError too."""
        addresses = await self._addresses(host)
        if not self._allow_private and not all(map(is_public, addresses)):
            raise PrivateAddressError(host)
        failure: Exception = NoSuchHostError(host)
        for address in addresses[:MAX_ADDRESSES]:
            try:
                return await self._plain.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise failure

    async def _addresses(self, host: str) -> list[str]:
        now = time.monotonic()
        while self._lookups and now - next(iter(self._lookups.values()))[0] >= LOOKUP_VALID_S:
            del self._lookups[next(iter(self._lookups))]  # the oldest come first
        if host not in self._lookups:
            self._lookups[host] = (now, asyncio.create_task(_look_up(host)))
        try:
            return await asyncio.shield(self._lookups[host][1])
        except httpcore.ConnectError:
            self._lookups.pop(host, None)  # another try asks again
            raise


async def _look_up(host: str) -> list[str]:
    """Addresses of a host, IPv4 first; none if it has none. Raises ConnectError where the name server is at fault."""
    if host == "invalid" or host.endswith(".invalid"):
        return []  # RFC 6761 section 6.4: such names never resolve, and need no question
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except UnicodeError:
        return []
    except socket.gaierror as error:
        if error.errno == socket.EAI_NONAME:
            return []
        raise httpcore.ConnectError(f"the look-up of {host} failed: {error}") from error
    found.sort(key=lambda entry: entry[0] != socket.AF_INET)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))
