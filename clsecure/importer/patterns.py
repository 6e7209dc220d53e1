"""The tables of the findings: which files act by themselves, and what well-known tokens look like."""

from __future__ import annotations

import re
from dataclasses import dataclass

from clsecure.model import Severity


@dataclass(frozen=True, slots=True, kw_only=True)
class PathRule:
    """Files that something executes or obeys without being told.

    :param pattern: matched against the whole path, lower-cased.
    :param why: ends the sentence "changed: …".
    """

    kind: str
    pattern: re.Pattern[str]
    severity: Severity
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRule:
    """A token whose form its issuer documents.

    :param signs: one of them is part of every such token; looked for first, which is ten times as fast.
    """

    name: str
    signs: tuple[bytes, ...]
    pattern: re.Pattern[bytes]


def _rule(kind: str, severity: Severity, why: str, *alternatives: str) -> PathRule:
    joined = "|".join(alternatives)
    return PathRule(
        kind=kind, pattern=re.compile(rf"(?:.*/)?(?:{joined})", re.DOTALL), severity=severity, why=why
    )


PATH_RULES = (
    _rule("git_hook", Severity.HIGH, "git runs it when it is set up as a hook",
          r"\.husky/.+", r"\.?git-?hooks/.+", r"hooks/(?:pre|post|prepare|commit|applypatch|update|fsmonitor|"
          r"reference|sendemail|push)[a-z-]*", r"\.pre-commit-config\.ya?ml", r"\.?lefthook(?:-local)?\.\w+",
          r"\.overcommit\.yml"),
    _rule("git_config", Severity.HIGH, "git obeys it at checkout and commit",
          r"\.gitattributes", r"\.gitmodules", r"\.lfsconfig", r"\.gitconfig"),
    _rule("ci", Severity.HIGH, "a server runs it once it is pushed",
          r"\.github/workflows/.+", r"\.github/actions/.+", r"\.github/dependabot\.ya?ml",
          r"\.gitlab-ci\.ya?ml",
          r"\.gitlab/.+", r"\.circleci/.+", r"jenkinsfile[^/]*", r"azure-pipelines[^/]*\.ya?ml",
          r"\.drone\.ya?ml",
          r"\.travis\.ya?ml", r"bitbucket-pipelines\.ya?ml", r"\.buildkite/.+",
          r"\.woodpecker(?:/.+|\.ya?ml)",
          r"\.(?:forgejo|gitea)/workflows/.+", r"appveyor\.ya?ml", r"\.ci/.+"),
    _rule("editor", Severity.HIGH, "an editor runs or obeys it when the folder is opened",
          r"\.vscode/.+", r"\.idea/.+", r"[^/]*\.code-workspace", r"\.zed/.+", r"\.fleet/.+", r"\.nvim\.lua",
          r"\.n?vimrc", r"\.exrc", r"\.dir-locals(?:-2)?\.el", r"[^/]*\.sublime-project", r"\.project"),
    _rule("agent", Severity.HIGH, "a coding agent obeys it outside of the sandbox too",
          r"\.claude/.+", r"\.mcp\.json", r"claude(?:\.local)?\.md", r"agents\.md", r"gemini\.md",
          r"\.cursor/.+",
          r"\.cursorrules", r"\.windsurf(?:/.+|rules)", r"\.codex/.+", r"\.gemini/.+", r"\.aider[^/]*",
          r"\.github/copilot-[^/]+", r"\.clinerules(?:/.+)?", r"\.clsecure/.+", r"\.continue/.+"),
    _rule("shell", Severity.HIGH, "a shell or tool runs it on entering the directory",
          r"\.envrc", r"\.env(?:\.[^/]+)?", r"\.autoenv(?:\.[a-z]+)?", r"\.mise(?:\.local)?\.toml",
          r"mise\.toml",
          r"\.tool-versions", r"\.(?:bash|zsh)(?:rc|env)", r"\.(?:bash_|z)?profile", r"\.devenv[^/]*",
          r"\.python-version", r"\.ruby-version", r"\.nvmrc"),
    _rule("container", Severity.WARNING, "it is run when the container is built or started",
          r"\.devcontainer(?:/.+|\.json)", r"(?:docker|container)file[^/]*",
          r"[^/]*\.(?:docker|container)file",
          r"(?:docker-)?compose[^/]*\.ya?ml", r"vagrantfile", r"\.gitpod\.ya?ml"),
    _rule("package_manager", Severity.HIGH, "a package manager obeys it: registries, scripts, wrappers",
          r"\.npmrc", r"\.yarnrc(?:\.ya?ml)?", r"\.yarn/.+", r"\.pnpmfile\.c?js", r"bunfig\.toml",
          r"pip\.conf",
          r"\.cargo/config(?:\.toml)?", r"\.bazelrc", r"\.bazelversion", r"nuget\.config", r"\.mvn/.+",
          r"mvnw(?:\.cmd)?", r"gradlew(?:\.bat)?", r"gradle/wrapper/.+", r"\.bundle/config",
          r"rust-toolchain[^/]*"),
    _rule("build", Severity.WARNING, "it is run by building, installing or testing",
          r"(?:gnu)?makefile[^/]*", r"[^/]*\.mk", r"\.?justfile", r"taskfile\.ya?ml", r"setup\.py",
          r"setup\.cfg",
          r"pyproject\.toml", r"conftest\.py", r"noxfile\.py", r"tox\.ini", r"tasks\.py", r"build\.rs",
          r"build\.zig",
          r"binding\.gyp", r"rakefile", r"gemfile", r"[^/]*\.gemspec", r"[^/]*\.(?:gradle|gradle\.kts)",
          r"cmakelists\.txt", r"configure", r"meson\.build", r"workspace(?:\.bazel)?", r"build\.bazel",
          r"flake\.nix",
          r"(?:default|shell)\.nix", r"gruntfile\.[a-z]+", r"gulpfile\.[a-z]+", r"composer\.json",
          r"mix\.exs",
          r"[^/]*\.config\.[cm]?[jt]s", r"deno\.jsonc?", r"sitecustomize\.py", r"usercustomize\.py",
          r"[^/]*\.pth"),
    _rule("desktop", Severity.HIGH, "a desktop runs it on a click", r"[^/]*\.desktop", r"autorun\.inf"),
)  # fmt: skip

PACKAGE_JSON = re.compile(r"(?:.*/)?package\.json", re.DOTALL)
PACKAGE_JSON_KEYS = (
    "scripts", "bin", "husky", "gypfile", "lint-staged", "simple-git-hooks", "pre-commit", "packageManager",
    "config", "workspaces",
)  # fmt: skip

TOKENS = (
    TokenRule(
        name="AWS access key", signs=(b"AKIA", b"ASIA"), pattern=re.compile(rb"\b(?:AKIA|ASIA)[A-Z2-7]{16}\b")
    ),
    TokenRule(name="Anthropic key", signs=(b"sk-ant-",), pattern=re.compile(rb"\bsk-ant-[A-Za-z0-9_-]{24,}")),
    TokenRule(
        name="OpenAI key",
        signs=(b"T3BlbkFJ",),
        pattern=re.compile(rb"\bsk-(?:proj-|svcacct-)?[A-Za-z0-9_-]{20}T3BlbkFJ[A-Za-z0-9_-]{20}"),
    ),
    TokenRule(
        name="GitHub token",
        signs=(b"ghp_", b"gho_", b"ghu_", b"ghs_", b"ghr_", b"github_pat_"),
        pattern=re.compile(rb"\b(?:gh[pousr]_[A-Za-z0-9]{36}|github_pat_\w{50,})"),
    ),
    TokenRule(
        name="GitLab token",
        signs=(b"glpat-", b"gldt-", b"glrt-", b"glptt-", b"glcbt-"),
        pattern=re.compile(rb"\bgl(?:pat|dt|rt|ptt|cbt)-[A-Za-z0-9_-]{20,}"),
    ),
    TokenRule(name="Slack token", signs=(b"xox",), pattern=re.compile(rb"\bxox[abeoprs]-[A-Za-z0-9-]{10,}")),
    TokenRule(name="Google key", signs=(b"AIza",), pattern=re.compile(rb"\bAIza[A-Za-z0-9_-]{35}\b")),
    TokenRule(name="Stripe key", signs=(b"_live_",), pattern=re.compile(rb"\b[rs]k_live_[A-Za-z0-9]{20,}")),
    TokenRule(name="npm token", signs=(b"npm_",), pattern=re.compile(rb"\bnpm_[A-Za-z0-9]{36}\b")),
    TokenRule(name="PyPI token", signs=(b"pypi-AgE",), pattern=re.compile(rb"\bpypi-AgE[A-Za-z0-9_-]{50,}")),
    TokenRule(name="Hugging Face token", signs=(b"hf_",), pattern=re.compile(rb"\bhf_[A-Za-z0-9]{34}\b")),
    TokenRule(
        name="private key",
        signs=(b"PRIVATE KEY",),
        pattern=re.compile(rb"-----BEGIN (?:[A-Z0-9]{2,12} ){0,3}PRIVATE KEY-----"),
    ),
    TokenRule(
        name="JSON web token",
        signs=(b".eyJ",),
        pattern=re.compile(rb"\beyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}"),
    ),
    TokenRule(
        name="password in a URL",
        signs=(b"://",),
        pattern=re.compile(rb"\b[a-z][a-z0-9+]{1,15}://[^\s/:@'\"<>]{1,80}:[^\s/@'\"<>{$]{3,80}@"),
    ),
)
