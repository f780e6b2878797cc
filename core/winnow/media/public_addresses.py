"""Which IP addresses belong to the public internet.

The list stands here, because that of Python's `ipaddress` differs from version to version: 192.0.0.192 is global to
some releases of 3.11 and private to others.
"""

import ipaddress

# IANA IPv4 and IPv6 Special-Purpose Address Registries, and what they leave out: multicast, old site-local addresses.
# All of them, also the few that are reachable from everywhere: they belong to protocols, and none has pictures.
_SPECIAL = (
    "0.0.0.0/8",  # this network
    "10.0.0.0/8",  # private
    "100.64.0.0/10",  # carriers' own; Alibaba's metadata 100.100.100.200
    "127.0.0.0/8",  # loopback
    "169.254.0.0/16",  # link-local; metadata 169.254.169.254 of most clouds, 169.254.170.2 of AWS ECS
    "172.16.0.0/12",  # private
    "192.0.0.0/24",  # protocols; Oracle's metadata 192.0.0.192
    "192.0.2.0/24",  # documentation
    "192.31.196.0/24",  # AS112
    "192.52.193.0/24",  # automatic multicast tunnels
    "192.88.99.0/24",  # relays of 6to4
    "192.168.0.0/16",  # private
    "192.175.48.0/24",  # AS112
    "198.18.0.0/15",  # benchmarks
    "198.51.100.0/24",  # documentation
    "203.0.113.0/24",  # documentation
    "224.0.0.0/4",  # multicast
    "240.0.0.0/4",  # reserved, broadcast
    "::/128",  # unspecified
    "::1/128",  # loopback
    "::ffff:0:0/96",  # IPv4 in IPv6
    "64:ff9b::/96",  # NAT64
    "64:ff9b:1::/48",  # NAT64 of local use: which bits hold the IPv4 address is not known outside
    "100::/64",  # discarded
    "100:0:0:1::/64",  # dummies
    "2001::/23",  # protocols; Teredo among them, which hides an IPv4 address
    "2001:db8::/32",  # documentation
    "2002::/16",  # 6to4, which hides an IPv4 address
    "2620:4f:8000::/48",  # AS112
    "3fff::/20",  # documentation
    "5f00::/16",  # segments of routes
    "fc00::/7",  # private; metadata of AWS fd00:ec2::254, Google fd20:ce::254, Scaleway fd00:42::42
    "fe80::/10",  # link-local; OpenStack's metadata fe80::a9fe:a9fe
    "fec0::/10",  # site-local
    "ff00::/8",  # multicast
    # The address of a cloud's own services that looks like any other.
    "168.63.129.16/32",  # Azure
)
_NETWORKS = tuple(map(ipaddress.ip_network, _SPECIAL))
# The part of IPv6 from which public addresses are allocated.
_UNICAST = ipaddress.IPv6Network("2000::/3")
# A connection to one of these reaches the IPv4 address in its last 32 bits. With the second range a machine that has
# only IPv6 reaches hosts that have only IPv4: its name server answers with such addresses (RFC 6147).
_IPV4_INSIDE = tuple(map(ipaddress.IPv6Network, ("::ffff:0:0/96", "64:ff9b::/96")))


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public internet.

    Args:
        address: An address of IPv4 or IPv6, the latter with or without a zone (`%eth0`).
    """
    parsed = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(parsed, ipaddress.IPv6Address):
        if any(parsed in network for network in _IPV4_INSIDE):
            parsed = ipaddress.IPv4Address(int(parsed) & 0xFFFF_FFFF)
        elif parsed not in _UNICAST:
            return False
    return not any(parsed in network for network in _NETWORKS)
