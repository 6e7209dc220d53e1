"""The JSON Schema of ``config.toml``, for editors and for programs that write one.

Never imported by a session: ``invoke schema`` writes it to ``docs/config.schema.json``. What pydantic knows
is the shape; what a value means (a host, a duration, a path) is judged by :mod:`.values` when it is read.
"""

# A key that is left out is None here, and null is no value of it: the types are those of what is written.
# mypy: disable-error-code="arg-type, assignment, valid-type"

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from clsecure.model import Credentials, DockerAccess, Engine, IsolationMode, NetworkPolicy, OnFinish
from clsecure.settings.structured import Auth
from clsecure.settings.values.durations import MAX_HOOK_SECONDS, MIN_HOOK_SECONDS
from clsecure.settings.values.isolation import AUTO
from clsecure.settings.values.output import NOTIFICATIONS, OutputFormat
from clsecure.settings.values.reach import PRESETS

_WORD = r"^\s*[0-9]+\s*[KMGTkmgt]?\s*$|^\s*[Nn][Oo][Nn][Ee]\s*$"
_Amount = Annotated[int, Field(gt=0)] | Annotated[str, Field(pattern=_WORD)]
_Strings = list[str] | str
_Duration = Annotated[int, Field(ge=0)] | str
_Preset = Literal[PRESETS]
_Notification = Literal[NOTIFICATIONS]
_Mode = Literal[tuple(each.value for each in IsolationMode)]
_ModeOrAuto = Literal[(*(each.value for each in IsolationMode), AUTO)]
_Engine = Literal[tuple(each.value for each in Engine)]
_Image = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
# The machine's own docker is asked for by a flag, each time.
_Docker = Literal[tuple(each.value for each in DockerAccess if each is not DockerAccess.HOST)]
_Network = Literal[tuple(each.value for each in NetworkPolicy)]
_Credentials = Literal[tuple(each.value for each in Credentials)]
_Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,31}$")]
_Variable = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,99}$")]
_Model = Annotated[str, Field(pattern=r"^[\x21-\x7e]{1,200}$")]

_NO_OTHERS: dict[str, Any] = {"additionalProperties": False}


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Limits(_Table):
    """Most that a session may take of the machine."""

    memory: _Amount = Field(default=None, description='bytes, or such as "4G"')
    cpus: Annotated[float, Field(gt=0)] | str = Field(
        default=None, description="processors, such as 2 or 0.5"
    )
    pids: _Amount = Field(default=None, description="processes and threads at the same time")
    disk: _Amount = Field(default=None, description='bytes of the worker\'s home, or such as "20G"')
    open_files: _Amount = Field(default=None, description="descriptors of one process")


class TimedLimits(Limits):
    """Most that a session may take of the machine, and of time."""

    time: _Duration = Field(default=None, description="the same as time_limit")


class Budget(_Table):
    """Most that a session may use of the network."""

    requests: _Amount = Field(default=None, description="requests of the agent")
    bytes: _Amount = Field(default=None, description="both directions together")
    tokens: _Amount = Field(default=None, description="as the API counts them")


class Egress(_Table):
    """What the session reaches besides the model's API."""

    allow: _Strings = Field(default=None, description="the same as allow_domains")
    deny: _Strings = Field(default=None, description="the same as deny_domains")
    presets: list[_Preset] | str = Field(default=None, description="hosts that your own tools name")
    provider_tools: bool = Field(default=None, description="the provider may fetch, search and run code")
    allow_private: bool = Field(default=None, description="with the full network: private addresses, too")
    budget: Budget | str = Field(default=None, description="stop the network after this")


class Setup(_Table):
    """What happens once in a fresh workspace."""

    script: str = Field(default=None, description="the same as setup_script")
    network: _Strings = Field(default=None, description="the same as setup_network")
    github_token: bool = Field(default=None, description="the script gets GH_TOKEN")
    install_dependencies: bool = Field(default=None, description="what lock files name is installed")


class Models(_Table):
    """Names of a provider's models, by what they are for."""

    default: _Model = Field(default=None, description="the same as model")
    opus: _Model = Field(default=None)
    sonnet: _Model = Field(default=None)
    haiku: _Model = Field(default=None)
    small_fast: _Model = Field(default=None)
    subagent: _Model = Field(default=None)


class Provider(_Table):
    """Somebody who serves a model by Anthropic's Messages API; exactly one key_ among them."""

    base_url: str = Field(description="the address of its API, without /v1/messages")
    key_env: _Variable = Field(default=None, description="the variable that holds its key")
    key_file: str = Field(default=None, description="the file that holds it, mode 0600; absolute, or ~/…")
    key_command: list[str] | str = Field(default=None, description="the command that prints it; no shell")
    auth: Literal[tuple(each.value for each in Auth)] = Field(
        default=None, description="how it wants the key: x-api-key, or Authorization: Bearer"
    )
    model: _Model = Field(default=None, description="the model that is asked")
    models: Models = Field(default=None)
    timeout_ms: Annotated[int, Field(ge=1000, le=86_400_000)] = Field(
        default=None, description="how long an answer may take"
    )


class Agent(_Table):
    """An agent of your own; its program is looked for inside."""

    command: list[str] = Field(description="what starts it: program and arguments")
    resume: list[str] = Field(default=None, description="what goes on with a kept session")
    env: list[_Variable] = Field(default=None, description="variables of yours that it may see; no secrets")
    base_url_env: _Variable = Field(default=None, description="the variable that tells it its API's address")
    token_env: _Variable = Field(default=None, description="the variable that it takes its key from")


class Enforce(_Table):
    """Ceilings of the machine; they count in /etc/clsecure/config.toml alone."""

    mode: _Mode = Field(default=None, description="at least this strong")
    engine: _Engine = Field(default=None, description="no other one")
    images: list[_Image] | str = Field(default=None, description="only these worker images")
    docker: _Docker | bool = Field(default=None, description="at most this; false forbids it")
    network: _Network | bool = Field(default=None, description="at most this open")
    allow: _Strings = Field(default=None, description="nothing but these hosts is allowed by anybody")
    deny: _Strings = Field(default=None, description="never these hosts")
    presets: list[_Preset] | str = Field(default=None, description="only these presets")
    credentials: _Credentials = Field(default=None, description="at most: none, inject, copy")
    provider_tools: bool = Field(default=None, description="false forbids it")
    allow_private: bool = Field(default=None, description="false forbids it")
    github_token: bool = Field(default=None, description="false forbids it")
    providers: _Strings = Field(default=None, description="only these; their addresses are fixed")
    mounts: _Strings = Field(
        default=None, description="only below these directories; :ro after one, only read"
    )
    time_limit: _Duration = Field(default=None, description="at most this long")
    limits: Limits | str = Field(default=None, description="at most this much, by part")
    budget: Budget | str = Field(default=None, description="at most this much, by part")


class ConfigFile(_Table):
    """Settings of clsecure, in any of its files; docs/settings.md says which may hold what."""

    mode: _ModeOrAuto = Field(
        default=None, description="what holds the agent; auto is the strongest that works"
    )
    engine: _Engine = Field(default=None, description="what runs the containers of container mode")
    runtime: str = Field(default=None, description="the OCI runtime, a name or an absolute path, or none")
    image: _Image = Field(default=None, description="the worker image of container mode")
    docker: _Docker | bool = Field(
        default=None, description="the session gets an engine of its own; true is own, false is none"
    )
    docker_images: _Strings = Field(
        default=None, description="images of your engine that are copied into the session's own"
    )
    network: _Network | bool = Field(default=None, description="what it reaches; true is full, false is api")
    allow_domains: _Strings = Field(default=None, description="HOST[:PORT] or *.SUB.DOMAIN[:PORT]")
    deny_domains: _Strings = Field(default=None, description="the same form; they win")
    presets: list[_Preset] | str = Field(default=None, description="hosts that your own tools name")
    credentials: _Credentials = Field(default=None, description="what becomes of your key")
    provider_tools: bool = Field(default=None, description="the provider may fetch, search and run code")
    allow_private: bool = Field(default=None, description="with the full network: private addresses, too")
    budget: str = Field(default=None, description="requests=N,bytes=N,tokens=N")
    session: str = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,31}$", description="its name")
    agent: _Name = Field(default=None, description="which agent runs")
    on_finish: Literal[tuple(each.value for each in OnFinish)] = Field(
        default=None, description="what becomes of the work"
    )
    full_clone: bool = Field(default=None, description="the whole history")
    mounts: _Strings = Field(default=None, description="SOURCE[:TARGET][:ro|:rw]")
    toolchains: bool = Field(default=None, description="a shared Homebrew is mounted, read-only")
    limits: TimedLimits | str = Field(default=None, description="most that it may take of the machine")
    time_limit: _Duration = Field(default=None, description="90, 30m, 2h, 1h30m or none")
    provider: _Name = Field(default=None, description="who serves the model")
    base_url: str = Field(default=None, description="the address of the model's API")
    kimi_api_key: str = Field(default=None, description="the key of the provider kimi")
    install_dependencies: bool = Field(default=None, description="what lock files name is installed")
    setup_script: str = Field(default=None, description="a program of yours that runs inside, once")
    setup_network: _Strings = Field(
        default=None, description="session, none, api, full, or hosts and presets"
    )
    github_token: bool = Field(default=None, description="the setup script gets GH_TOKEN")
    cleanup_hook_timeout: Annotated[int, Field(ge=MIN_HOOK_SECONDS, le=MAX_HOOK_SECONDS)] | str = Field(
        default=None, description="seconds"
    )
    skip_docker_autodetect: bool = Field(default=None, description="compose files stand in for no hook")
    notify: list[_Notification] | str = Field(default=None, description="how you are called at the end")
    notify_command: str = Field(default=None, description="a program of yours that is started then")
    notify_after: _Duration = Field(default=None, description="only after this long")
    image_mirror: str = Field(default=None, description="Debian's packages for worker images")
    image_registry: str = Field(default=None, description="a registry that has the locked worker images")
    record_ssh_key: str = Field(default=None, description="an SSH key of yours signs records, too")
    record_notes: bool = Field(default=None, description="an import leaves a git note that names its record")
    output: Literal[tuple(each.value for each in OutputFormat)] = Field(
        default=None, description="how results are written"
    )
    verbose: bool = Field(default=None, description="show what happens")
    egress: Egress = Field(default=None)
    setup: Setup = Field(default=None)
    providers: dict[_Name, Provider] = Field(
        default=None, description="providers of your own, by name", json_schema_extra=_NO_OTHERS
    )
    agents: dict[_Name, Agent] = Field(
        default=None, description="agents of your own, by name", json_schema_extra=_NO_OTHERS
    )
    enforce: Enforce = Field(default=None)


def document() -> dict[str, Any]:
    """Return the schema."""
    schema: dict[str, Any] = _without_nulls(ConfigFile.model_json_schema())
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _without_nulls(schema: Any) -> Any:  # noqa: ANN401  # any part of a schema
    """Leave out what pydantic says of the None that stands for absence, and the names that it makes up."""
    if isinstance(schema, list):
        return [_without_nulls(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    made_up = {"default": None, "title": schema.get("title")}
    named = "properties" in schema
    return {
        name: _without_nulls(item)
        for name, item in schema.items()
        if named or name not in made_up or item != made_up[name]
    }
