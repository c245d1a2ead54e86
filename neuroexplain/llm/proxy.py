"""Proxies of the environment: never between us and this machine, and named where they may be the reason."""

from __future__ import annotations

from ipaddress import ip_address
from urllib.parse import urlsplit, urlunsplit
from urllib.request import getproxies, proxy_bypass


def is_this_machine(url: str) -> bool:
    """Whether the URL's host is a loopback address, or localhost."""
    host = (urlsplit(url).hostname or "").removesuffix(".")
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def find_proxy(url: str) -> str | None:
    """The proxy that the environment names for the URL, without a password; None if there is none."""
    parts = urlsplit(url)
    if is_this_machine(url) or not parts.hostname or proxy_bypass(parts.hostname):
        return None
    proxies = getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if not proxy:
        return None
    split = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    return urlunsplit(split._replace(netloc=split.netloc.rsplit("@", 1)[-1]))
