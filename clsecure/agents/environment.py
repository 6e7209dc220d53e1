"""Names that may pass from the user's environment."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

TERMINAL_NAMES = frozenset(
    {
        "TERM",
        "COLORTERM",
        "COLORFGBG",
        "NO_COLOR",
        "FORCE_COLOR",
        "CLICOLOR",
        "CLICOLOR_FORCE",
        "TERM_PROGRAM",
        "TERM_PROGRAM_VERSION",
        "VTE_VERSION",
        "LANG",
        "LANGUAGE",
        "TZ",
    }
)
"""How to draw and in which language; every agent gets these."""

_LOCALE_NAME = re.compile(r"LC_[A-Z]{1,20}")

# A value with control characters could speak to the terminal of whoever prints it.
_VALUE = re.compile(r"[\x20-\x7e\u00a0-\ud7ff]{0,512}")

# Documented, neither secret nor an address, a path, a header or a program to run. Whatever Claude Code learns
# next stays outside until it is added here.
CLAUDE_NAMES = frozenset(
    {
        "ANTHROPIC_BETAS",
        "ANTHROPIC_MODEL",
        "ANTHROPIC_SMALL_FAST_MODEL",
        *(
            f"ANTHROPIC_{model}{suffix}"
            for model in (
                "CUSTOM_MODEL_OPTION",
                "DEFAULT_FABLE_MODEL",
                "DEFAULT_HAIKU_MODEL",
                "DEFAULT_OPUS_MODEL",
                "DEFAULT_SONNET_MODEL",
            )
            for suffix in ("", "_NAME", "_DESCRIPTION", "_SUPPORTED_CAPABILITIES")
        ),
        "API_TIMEOUT_MS",
        "BASH_DEFAULT_TIMEOUT_MS",
        "BASH_MAX_OUTPUT_LENGTH",
        "BASH_MAX_TIMEOUT_MS",
        "CLAUDE_AUTOCOMPACT_PCT_OVERRIDE",
        "CLAUDE_BASH_MAINTAIN_PROJECT_WORKING_DIR",
        "CLAUDE_CODE_ALWAYS_ENABLE_EFFORT",
        "CLAUDE_CODE_AUTO_COMPACT_WINDOW",
        *(
            f"CLAUDE_CODE_DISABLE_{what}"
            for what in (
                "1M_CONTEXT",
                "ADAPTIVE_THINKING",
                "ADVISOR_TOOL",
                "AGENT_VIEW",
                "ALTERNATE_SCREEN",
                "ATTACHMENTS",
                "AUTO_MEMORY",
                "BACKGROUND_TASKS",
                "CLAUDE_MDS",
                "CRON",
                "EXPERIMENTAL_BETAS",
                "FAST_MODE",
                "FEEDBACK_SURVEY",
                "FILE_CHECKPOINTING",
                "GIT_INSTRUCTIONS",
                "LEGACY_MODEL_REMAP",
                "MOUSE",
                "NONSTREAMING_FALLBACK",
                "TERMINAL_TITLE",
                "THINKING",
                "VIRTUAL_SCROLL",
                "WORKFLOWS",
            )
        ),
        "CLAUDE_CODE_EFFORT_LEVEL",
        "CLAUDE_CODE_ENABLE_FINE_GRAINED_TOOL_STREAMING",
        "CLAUDE_CODE_ENABLE_PROMPT_SUGGESTION",
        "CLAUDE_CODE_ENABLE_TASKS",
        "CLAUDE_CODE_EXPERIMENTAL_AGENT_TEAMS",
        "CLAUDE_CODE_FILE_READ_MAX_OUTPUT_TOKENS",
        "CLAUDE_CODE_GLOB_HIDDEN",
        "CLAUDE_CODE_GLOB_NO_IGNORE",
        "CLAUDE_CODE_GLOB_TIMEOUT_SECONDS",
        "CLAUDE_CODE_MAX_CONTEXT_TOKENS",
        "CLAUDE_CODE_MAX_OUTPUT_TOKENS",
        "CLAUDE_CODE_MAX_RETRIES",
        "CLAUDE_CODE_MAX_TOOL_USE_CONCURRENCY",
        "CLAUDE_CODE_NO_FLICKER",
        "CLAUDE_CODE_SCROLL_SPEED",
        "CLAUDE_CODE_SIMPLE",
        "CLAUDE_CODE_SUBAGENT_MODEL",
        "CLAUDE_CODE_SYNTAX_HIGHLIGHT",
        "DISABLE_AUTO_COMPACT",
        "DISABLE_COMPACT",
        "DISABLE_COST_WARNINGS",
        "DISABLE_INTERLEAVED_THINKING",
        *(f"DISABLE_PROMPT_CACHING{model}" for model in ("", "_FABLE", "_HAIKU", "_OPUS", "_SONNET")),
        "DO_NOT_TRACK",
        "ENABLE_PROMPT_CACHING_1H",
        "ENABLE_TOOL_SEARCH",
        "FALLBACK_FOR_ALL_PRIMARY_MODELS",
        "FORCE_PROMPT_CACHING_5M",
        "MAX_MCP_OUTPUT_TOKENS",
        "MAX_STRUCTURED_OUTPUT_RETRIES",
        "MAX_THINKING_TOKENS",
        "MCP_TIMEOUT",
        "MCP_TOOL_TIMEOUT",
        "SLASH_COMMAND_TOOL_CHAR_BUDGET",
        "TASK_MAX_OUTPUT_LENGTH",
        "USE_BUILTIN_RIPGREP",
    }
)

CLAUDE_MODELS = MappingProxyType(
    {
        "default": "ANTHROPIC_MODEL",
        "opus": "ANTHROPIC_DEFAULT_OPUS_MODEL",
        "sonnet": "ANTHROPIC_DEFAULT_SONNET_MODEL",
        "haiku": "ANTHROPIC_DEFAULT_HAIKU_MODEL",
        "small_fast": "ANTHROPIC_SMALL_FAST_MODEL",
        "subagent": "CLAUDE_CODE_SUBAGENT_MODEL",
    }
)
"""The variables that name Claude Code's models, by role."""

CLAUDE_PROVIDER_NAMES = frozenset(
    {
        *(name for name in CLAUDE_NAMES if name.startswith("ANTHROPIC_")),
        "CLAUDE_CODE_SUBAGENT_MODEL",
        "FALLBACK_FOR_ALL_PRIMARY_MODELS",
    }
)
"""Names of models and of what they can: they mean nothing to another provider."""

CLAUDE_CLOUDS = MappingProxyType(
    {
        "CLAUDE_CODE_USE_BEDROCK": frozenset(
            {
                "CLAUDE_CODE_SKIP_BEDROCK_AUTH",
                "ANTHROPIC_BEDROCK_BASE_URL",
                "AWS_ACCESS_KEY_ID",
                "AWS_SECRET_ACCESS_KEY",
                "AWS_SESSION_TOKEN",
                "AWS_BEARER_TOKEN_BEDROCK",
                "AWS_REGION",
                "AWS_DEFAULT_REGION",
            }
        ),
        "CLAUDE_CODE_USE_VERTEX": frozenset(
            {
                "CLAUDE_CODE_SKIP_VERTEX_AUTH",
                "ANTHROPIC_VERTEX_BASE_URL",
                "ANTHROPIC_VERTEX_PROJECT_ID",
                "CLOUD_ML_REGION",
                "GOOGLE_CLOUD_PROJECT",
                # A path; the file itself has to be mounted there.
                "GOOGLE_APPLICATION_CREDENTIALS",
            }
        ),
    }
)
"""What Claude Code needs for providers whose requests are signed, by the variable that chooses the provider.
Passes with ``credentials = copy`` only, and of a provider that is not chosen nothing."""

_SECRET = re.compile(r"_KEY(?:_ID)?$|_TOKEN(?:_[A-Z]+)?$")
_CREDENTIAL = re.compile(r"[\x21-\x7e]{1,16384}")
_NOT_CHOSEN = frozenset({"", "0", "false", "no", "off"})


@dataclass(frozen=True, slots=True, kw_only=True)
class CloudCredentials:
    """What of the user's environment opens a cloud's API.

    :param env: variables for the agent.
    :param secrets: those values of it that nothing may log.
    """

    env: Mapping[str, str] = field(repr=False)
    secrets: tuple[str, ...] = field(repr=False)


def cloud_credentials(
    environ: Mapping[str, str], clouds: Mapping[str, frozenset[str]]
) -> CloudCredentials | None:
    """Return what the chosen cloud needs; None when the user has chosen none."""
    chosen = [name for name in clouds if environ.get(name, "").strip().lower() not in _NOT_CHOSEN]
    names = {*chosen, *(name for each in chosen for name in clouds[each])}
    env = {name: environ[name] for name in names if _CREDENTIAL.fullmatch(environ.get(name, ""))}
    secrets = tuple(env[name] for name in env if _SECRET.search(name))
    return CloudCredentials(env=env, secrets=secrets) if env else None


def may_pass(name: str, value: str, *, allowed: frozenset[str]) -> bool:
    """Tell whether a variable of the user's environment may be seen inside."""
    if name not in TERMINAL_NAMES and name not in allowed and not _LOCALE_NAME.fullmatch(name):
        return False
    return _VALUE.fullmatch(value) is not None
