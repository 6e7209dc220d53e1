"""Claude Code's settings, key by key: what of the user's may come along, and what a session needs.

Default deny. A key comes along when its row says what it is good for and its value has the form that the row
demands; everything else stays outside, also whatever later versions of Claude Code add.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import Any

from clsecure.agents.digests import VERSION

Check = Callable[[object], bool]

_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@\[\]+-]{0,127}")
_LINE = re.compile(r"[^\x00-\x1f\x7f-\x9f]{0,200}")
_TEXT = re.compile(r"[^\x00-\x09\x0b-\x1f\x7f-\x9f]{0,2000}")
_RULE = re.compile(r"[^\x00-\x1f\x7f-\x9f]{1,500}")
_MAX_ITEMS = 500


def _boolean(value: object) -> bool:
    return isinstance(value, bool)


def _number(low: float, high: float) -> Check:
    return lambda value: (
        isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high
    )


def _matches(pattern: re.Pattern[str]) -> Check:
    return lambda value: isinstance(value, str) and pattern.fullmatch(value) is not None


def _list_of(item: Check) -> Check:
    return lambda value: isinstance(value, list) and len(value) <= _MAX_ITEMS and all(map(item, value))


def _record(**fields: Check) -> Check:
    return lambda value: (
        isinstance(value, dict) and all(key in fields and fields[key](item) for key, item in value.items())
    )


def _by_name(item: Check) -> Check:
    return lambda value: (
        isinstance(value, dict)
        and len(value) <= _MAX_ITEMS
        and all(_word(key) and item(entry) for key, entry in value.items())
    )


_word = _matches(_WORD)
_line = _matches(_LINE)
_text = _matches(_TEXT)
_rules = _list_of(_matches(_RULE))


@dataclass(frozen=True, slots=True, kw_only=True)
class Preference:
    """One key that may come along.

    :param check: accepts the value as it is; a value that it does not accept stays outside.
    :param why: what the user would miss.
    """

    check: Check
    why: str


def _rows(why: str, check: Check, *keys: str) -> dict[str, Preference]:
    return {key: Preference(check=check, why=why) for key in keys}


SETTINGS: Mapping[str, Preference] = MappingProxyType(
    {
        **_rows("which model answers", _word, "model", "advisorModel"),
        **_rows("which models may answer", _list_of(_word), "availableModels", "fallbackModel"),
        **_rows("how hard the model thinks", _word, "effortLevel"),
        **_rows(
            "how hard the model thinks",
            _boolean,
            "alwaysThinkingEnabled",
            "fastMode",
            "fastModePerSessionOptIn",
        ),
        **_rows("how answers sound", _line, "outputStyle", "language"),
        **_rows("which of the user's agents leads", _word, "agent"),
        **_rows(
            "how the screen looks and keys work",
            _word,
            "theme",
            "editorMode",
            "viewMode",
            "tui",
            "preferredNotifChannel",
        ),
        **_rows(
            "how the screen looks and keys work",
            _boolean,
            "autoScrollEnabled",
            "awaySummaryEnabled",
            "axScreenReader",
            "prefersReducedMotion",
            "promptSuggestionEnabled",
            "showClearContextOnPlanAccept",
            "showMessageTimestamps",
            "showThinkingSummaries",
            "showTurnDuration",
            "spinnerTipsEnabled",
            "syntaxHighlightingDisabled",
            "terminalProgressBarEnabled",
            "terminalTitleFromRename",
            "todoFeatureEnabled",
            "verbose",
            "wheelScrollAccelerationEnabled",
        ),
        **_rows(
            "how the screen looks and keys work",
            _record(mode=_word, verbs=_list_of(_line)),
            "spinnerVerbs",
        ),
        **_rows(
            "how context is used",
            _boolean,
            "autoCompactEnabled",
            "autoMemoryEnabled",
            "fileCheckpointingEnabled",
            "includeGitInstructions",
            "respectGitignore",
            "respondToBashCommands",
            "workflowKeywordTriggerEnabled",
        ),
        **_rows("how context is used", _number(0, 100_000_000), "autoCompactWindow"),
        **_rows("what commit messages say of the agent", _boolean, "includeCoAuthoredBy"),
        **_rows(
            "what commit messages say of the agent",
            _record(commit=_text, pr=_text, sessionUrl=_boolean),
            "attribution",
        ),
        **_rows("how long transcripts inside are kept", _number(1, 100_000), "cleanupPeriodDays"),
        **_rows(
            "which features are off or on",
            _boolean,
            "disableAllHooks",
            "disableBundledSkills",
            "disableSkillShellExecution",
            "disableWorkflows",
            "enableWorkflows",
            "skipWorkflowUsageWarning",
        ),
        **_rows("which skills are listed", _by_name(_word), "skillOverrides"),
        **_rows("which skills are listed", _number(0, 1_000_000), "skillListingMaxDescChars"),
        **_rows("which skills are listed", _number(0, 1), "skillListingBudgetFraction"),
        **_rows("which servers of the project the user refused", _list_of(_line), "disabledMcpjsonServers"),
    }
)

# Rules that restrict come along. Those that allow are collected by Claude Code from what was approved, also
# command lines with tokens in them, and are of no use where nothing is asked; the rest are host paths.
PERMISSIONS: Mapping[str, Preference] = MappingProxyType(
    _rows("what the agent must not do", _rules, "deny", "ask")
)

# What older versions kept in ~/.claude.json.
GLOBAL_KEYS = frozenset(
    {
        "autoCompactEnabled",
        "editorMode",
        "fileCheckpointingEnabled",
        "preferredNotifChannel",
        "respectGitignore",
        "showTurnDuration",
        "terminalProgressBarEnabled",
        "theme",
        "todoFeatureEnabled",
        "verbose",
    }
)

LEFT_OUT: Mapping[str, str] = MappingProxyType(
    {
        "env": "may hold keys, proxies and addresses",
        "apiKeyHelper": "prints a credential; the gateway has it",
        "proxyAuthHelper": "prints a credential",
        "awsAuthRefresh": "prints or renews a credential",
        "awsCredentialExport": "prints or renews a credential",
        "gcpAuthRefresh": "prints or renews a credential",
        "otelHeadersHelper": "prints a credential",
        "hooks": "run programs of the host; a project's own hooks do run inside",
        "statusLine": "runs a program of the host",
        "subagentStatusLine": "runs a program of the host",
        "fileSuggestion": "runs a program of the host",
        "mcpServers": "their arguments, environment and headers hold credentials",
        "enabledPlugins": "plugins bring hooks and servers of the host",
        "pluginConfigs": "options of plugins and servers hold credentials",
        "extraKnownMarketplaces": "addresses that may hold credentials",
    }
)
"""Keys that a user may miss, and why they stay outside. For telling; what is not named stays outside too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FilteredSettings:
    """What passed, and the names of what did not and may be missed."""

    values: Mapping[str, Any]
    left_out: tuple[str, ...] = ()


def filter_settings(settings: Mapping[str, object]) -> FilteredSettings:
    """Return what of the user's ``settings.json`` may come along."""
    values = {
        key: settings[key] for key, row in SETTINGS.items() if key in settings and row.check(settings[key])
    }
    permissions = settings.get("permissions")
    if isinstance(permissions, dict):
        kept = {
            key: permissions[key]
            for key, row in PERMISSIONS.items()
            if key in permissions and row.check(permissions[key])
        }
        if kept:
            values["permissions"] = kept
    return FilteredSettings(
        values=values,
        left_out=tuple(f"settings.json: {key} ({why})" for key, why in LEFT_OUT.items() if settings.get(key)),
    )


def session_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the ``settings.json`` of a session: the user's preferences, and what the sandbox decides."""
    return {
        **values,
        # The warning that the unattended flag shows once; inside the sandbox its answer is known.
        "skipDangerousModePermissionPrompt": True,
        # One sandbox is enough: theirs needs user namespaces, which ours forbids.
        "sandbox": {"enabled": False},
        # A project's servers could be started by the agent anyway; a dialog would only wait for nobody.
        "enableAllProjectMcpServers": True,
        "disableDeepLinkRegistration": "disable",
        # Before it fetches from a host that the user allowed, it would ask a service of the provider's about
        # that host, which only the API's own paths are open for; the gateway decides, and sees each fetch.
        "skipWebFetchPreflight": True,
    }


def session_state(
    user_state: Mapping[str, object], *, workspace: PurePosixPath, version: str | None
) -> dict[str, Any]:
    """Return the ``.claude.json`` of a new session: as if all first-start dialogs had been answered.

    :param user_state: the user's ``.claude.json``; looked at for preferences only. Accounts, ids, projects,
        servers and approved keys in it stay outside.
    :param version: of Claude Code, so that it does not greet with release notes.
    """
    state: dict[str, Any] = {
        key: user_state[key]
        for key in sorted(GLOBAL_KEYS)
        if key in user_state and SETTINGS[key].check(user_state[key])
    }
    if version is not None and VERSION.fullmatch(version):
        state |= {"lastOnboardingVersion": version, "lastReleaseNotesSeen": version}
    return {
        **state,
        "hasCompletedOnboarding": True,
        "bypassPermissionsModeAccepted": True,
        "hasAcknowledgedCostThreshold": True,
        "officialMarketplaceAutoInstallAttempted": True,
        "autoConnectIde": False,
        "autoInstallIdeExtension": False,
        "projects": {
            str(workspace): {
                "allowedTools": [],
                "hasTrustDialogAccepted": True,
                "hasTrustDialogHooksAccepted": True,
                "hasCompletedProjectOnboarding": True,
                "hasClaudeMdExternalIncludesApproved": True,
                "hasClaudeMdExternalIncludesWarningShown": True,
            }
        },
    }
