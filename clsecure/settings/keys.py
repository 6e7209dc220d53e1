"""The keys of the model by name, and the spellings that are understood. Standard library only."""

from __future__ import annotations

import re
from collections.abc import Iterable

KEYS = (
    "mode", "engine", "runtime", "image", "docker", "docker_images",
    "network", "allow_domains", "deny_domains", "presets", "credentials", "provider_tools",
    "allow_private", "budget", "session", "agent", "on_finish", "full_clone", "mounts", "toolchains",
    "limits", "time_limit", "provider", "base_url", "kimi_api_key", "install_dependencies", "setup_script",
    "setup_network", "github_token", "cleanup_hook_timeout", "skip_docker_autodetect", "notify",
    "notify_command", "notify_after", "image_mirror", "image_registry", "record_ssh_key", "record_notes",
    "output", "verbose",
)  # fmt: skip
"""The keys of the model, by name; a test keeps the two the same."""

STRUCTURED = ("providers", "agents")
"""Tables of ``config.toml`` that hold tables by name; no flag, variable or flat file says them."""

SECRET = frozenset({"kimi_api_key"})
"""Keys whose values are never shown."""

TOGETHER = frozenset(
    {"mounts", "allow_domains", "deny_domains", "presets", "budget", "limits", "docker_images"}
)
"""Keys whose layers count together: one may be said several times by flags and in lists."""

FLAGS = {
    "mode": "--mode", "engine": "--engine", "runtime": "--runtime", "image": "--image",
    "docker": "--allow-docker", "docker_images": "--docker-image",
    "network": "--allow-network", "deny_domains": "--deny-domain",
    "allow_domains": "--allow-domain", "presets": "--allow-preset", "credentials": "--credentials",
    "provider_tools": "--provider-tools", "allow_private": "--allow-private", "budget": "--budget",
    "session": "--session", "agent": "--agent", "on_finish": "--on-finish", "full_clone": "--full-clone",
    "mounts": "--mount", "limits": "--limit", "time_limit": "--time-limit", "provider": "--provider",
    "install_dependencies": "--install-deps", "output": "--output", "verbose": "--verbose",
}  # fmt: skip
"""What the user can say in the place of a file; a test holds it against the command line's."""

SPELLINGS = {
    "isolation_mode": "mode",
    "allow_network": "network",
    "allow_domain": "allow_domains",
    "deny_domain": "deny_domains",
    "preset": "presets",
    "allow_preset": "presets",
    "mount": "mounts",
    "limit": "limits",
    "allow_docker": "docker",
    "docker_image": "docker_images",
    "install_deps": "install_dependencies",
}
FORM = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,39}")


def canonical(written: str) -> str | None:
    """Return the key that a spelling stands for, None when there is none."""
    key = normal(written)
    key = SPELLINGS.get(key, key)
    return key if key in KEYS else None


def normal(written: str) -> str:
    """Return a spelling in the case and with the dashes of the model."""
    return written.lower().replace("-", "_")


def nearest(written: str, among: Iterable[str] = (*KEYS, *SPELLINGS)) -> str:
    """Return what may have been meant, as a question, or what there is."""
    import difflib

    names = list(among)
    near = difflib.get_close_matches(normal(written[:64]), names, n=1)
    valid = [name for name in names if name not in SPELLINGS]
    return f"did you mean {near[0]}?" if near else f"valid keys: {', '.join(valid)}"
