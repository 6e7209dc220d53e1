"""Which proxies the user's environment names. Imported where each session starts, so without asyncio."""

from __future__ import annotations

from collections.abc import Mapping

from clsecure.egress.wire import HostProxies


def host_proxies(environ: Mapping[str, str]) -> HostProxies:
    """Return the proxies that an environment names, as the standard library reads it.

    :param environ: the user's environment. ``HTTP_PROXY`` counts only where no CGI server could have made it
        out of a request's header, and lower-case names win.
    """
    found: dict[str, str] = {}
    for kind in ("http", "https", "no"):
        names = [f"{kind}_proxy"]
        if not (kind == "http" and "REQUEST_METHOD" in environ):
            names.append(f"{kind.upper()}_PROXY")
        # An empty lower-case one switches the other off.
        value = next((environ[name] for name in names if name in environ), "")
        found[kind] = value.strip()
    return HostProxies(http=found["http"], https=found["https"], no_proxy=found["no"])
