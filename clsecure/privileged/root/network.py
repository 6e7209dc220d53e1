"""The packet filter of a full network, which the worker can't lift."""

from __future__ import annotations

import array
import contextlib
import fcntl
import os
import socket

from clsecure.privileged.root.kernel import CLONE_NEWNET, call
from clsecure.privileged.root.messages import Refused
from clsecure.privileged.root.processes import tool

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

NFT = "/usr/sbin/nft"
NS_GET_USERNS, NS_GET_NSTYPE, NS_GET_OWNER_UID = 0xB701, 0xB703, 0xB704
RTF_LOCAL_OR_ANYCAST = 0x80100000

# Loopback, link-local, benchmark, multicast, reserved, IPv6 that leads to IPv4; metadata that is elsewhere
# (Alibaba, Azure; AWS, Google, Scaleway). Source: IANA's special-purpose address registries.
CLOSED = (
    "0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "192.0.0.0/24", "198.18.0.0/15", "224.0.0.0/3",
    "100.100.100.200", "168.63.129.16",
    "::/8", "2001::/32", "2002::/16", "fe80::/9", "ff00::/8", "fd00:ec2::/32", "fd20:ce::254", "fd00:42::42",
)  # fmt: skip
PRIVATE = ("10.0.0.0/8", "100.64.0.0/10", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7")
RESOLVER = "169.254.1.3"
TABLE = ("inet", "clsecure")
# Of each sandbox anew, in the place of what an earlier one in the same namespace has: in one transaction.
FILTER = """add table inet clsecure
delete table inet clsecure
table inet clsecure {{
  chain out {{
    type filter hook output priority 0; policy accept;
    oifname "lo" accept
    ip daddr {resolver} meta l4proto {{ tcp, udp }} th dport 53 accept
    icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert, nd-router-solicit }} accept
    ip daddr {{ {ipv4} }} reject with icmpx type admin-prohibited
    ip6 daddr {{ {ipv6} }} reject with icmpx type admin-prohibited
  }}
}}"""


def host_addresses() -> list[str]:
    """Return what the kernel takes for the machine itself: its addresses, anycast ones, and local ranges."""
    found = set()
    with open("/proc/net/fib_trie", encoding="ascii") as file:
        address = ""
        for line in file:
            if "--" in line:
                address = line.split()[-1]
            elif " LOCAL" in line:
                found.add(address + line.split()[0])
    with contextlib.suppress(FileNotFoundError), open("/proc/net/ipv6_route", encoding="ascii") as file:
        for address, size, *_, flags, _device in map(str.split, file):
            if int(flags, 16) & RTF_LOCAL_OR_ANYCAST:
                found.add(f"{socket.inet_ntop(socket.AF_INET6, bytes.fromhex(address))}/{int(size, 16)}")
    return sorted(found)


def owner_of(namespace: int) -> int:
    """Return the uid of who made the user namespace that a network namespace belongs to."""
    owner, spaces = array.array("I", [0]), fcntl.ioctl(namespace, NS_GET_USERNS)
    try:
        fcntl.ioctl(spaces, NS_GET_OWNER_UID, owner)
    finally:
        os.close(spaces)
    return owner[0]


def close_network(namespace: int, caller: int, addresses: Iterable[str]) -> None:
    """Enter the network namespace of a full network, and load the filter there that the worker can't lift."""
    if fcntl.ioctl(namespace, NS_GET_NSTYPE) != CLONE_NEWNET:
        raise Refused("the descriptor is no network namespace")
    # The caller's own making. Those of root's, the machine's first, can be opened by anybody (/run/netns).
    if owner_of(namespace) != caller:
        raise Refused("the network namespace is not the caller's own")
    call("setns", namespace, CLONE_NEWNET)
    ipv6 = [address for address in addresses if ":" in address]
    ipv4 = [address for address in addresses if ":" not in address]
    tool(NFT, FILTER.format(resolver=RESOLVER, ipv4=", ".join(ipv4), ipv6=", ".join(ipv6)))
