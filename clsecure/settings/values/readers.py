"""The reader of each key."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from clsecure.settings.values import (
    amounts,
    durations,
    isolation,
    names,
    output,
    reach,
    services,
    work,
)
from clsecure.settings.values.words import boolean

READERS: Mapping[str, Callable[[str], object]] = {
    "mode": isolation.mode,
    "engine": isolation.engine,
    "runtime": isolation.runtime,
    "image": isolation.image,
    "docker": isolation.docker,
    "docker_images": isolation.docker_images,
    "network": reach.network,
    "session": names.session,
    "agent": names.agent,
    "on_finish": work.on_finish,
    "full_clone": boolean,
    "time_limit": durations.time_limit,
    "base_url": services.base_url,
    "presets": reach.presets,
    "credentials": services.credentials,
    "provider_tools": boolean,
    "allow_private": boolean,
    "budget": amounts.budget,
    "toolchains": boolean,
    "limits": amounts.limits,
    "provider": names.provider,
    "kimi_api_key": services.secret,
    "install_dependencies": boolean,
    "github_token": boolean,
    "cleanup_hook_timeout": durations.cleanup_hook_timeout,
    "skip_docker_autodetect": boolean,
    "notify": output.notify,
    "notify_after": durations.notify_after,
    "image_mirror": services.image_mirror,
    "image_registry": services.image_registry,
    "record_notes": boolean,
    "output": output.output,
    "verbose": boolean,
}
"""The reader of each key whose value needs to know neither where it stands nor whose home it is."""
