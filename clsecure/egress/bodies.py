"""What a Messages request may ask for. Pure.

An allowed API is a channel out when its provider fetches, searches or runs code for whoever asks: a tool on
the provider's side, a connector, an image by URL. All of it is refused unless the user allowed provider
tools. The body is forwarded as it came, so it must mean the same to every parser: UTF-8, no key twice, no
NaN.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from clsecure.egress.rules import Denial, deny, malformed

MAX_STRUCTURE = 1_000_000
"""Most brackets, commas and colons in a body: parsing costs memory by them, not by the length."""

_MAX_DEPTH = 100
# Each with its date and nothing else: bash_code_execution is what the provider's own tool calls itself.
_CLIENT_TOOL = re.compile(
    r"(?:bash|text_editor|computer|memory)_[0-9]{8}|tool_search_tool_(?:regex|bm25)(?:_[0-9]{8})?"
)
"""Types of tools that run on the agent's side, or search nothing but the request itself."""

_CARRIED_SOURCES = frozenset({"base64", "text", "content"})
"""Types of sources that carry their content along instead of naming it."""

_ASK = "; the user can allow it with provider_tools"


class _RefusedError(Exception):
    def __init__(self, denial: Denial) -> None:
        super().__init__(denial.reason)
        self.denial = denial


def inspect(body: bytes, *, provider_tools: bool) -> Denial | None:
    """Return why a Messages request is refused, None when it may pass.

    :param provider_tools: the user allowed what makes the provider reach out.
    """
    # Counting takes longer than parsing: not where the length alone says enough.
    if len(body) > MAX_STRUCTURE and sum(map(body.count, (b"[", b"{", b",", b":"))) > MAX_STRUCTURE:
        return deny("body-size", "the request has too many parts", status=413, kind="request_too_large")
    try:
        # Decoded here: json would guess UTF-16 and UTF-32, which others don't.
        document = json.loads(body.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
        _check_document(document, provider_tools=provider_tools)
    except _RefusedError as refused:
        return refused.denial
    except (ValueError, RecursionError):
        return malformed("body", "the body is not plain JSON")
    return None


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise _RefusedError(malformed("body", "a key appears twice in one object"))
    return result


def _no_constant(_: str) -> object:
    raise ValueError


def _check_document(document: object, *, provider_tools: bool) -> None:
    if not isinstance(document, dict):
        raise _RefusedError(malformed("body", "the body is not an object"))
    if provider_tools:
        return
    for key, value in document.items():
        # Some parsers take keys in any case; what matters here is refused in any case too.
        match key.casefold():
            case "mcp_servers" if value:
                raise _RefusedError(deny("provider-tools", "connectors (mcp_servers) are refused" + _ASK))
            case "container" if value:
                raise _RefusedError(deny("provider-tools", "containers of the provider are refused" + _ASK))
            case "api_base" | "base_url" | "api_key" | "extra_headers" | "extra_body":
                # Model gateways that the user may have in the provider's place go where these say.
                raise _RefusedError(
                    deny(
                        "provider-tools",
                        f"the request must not say where it is sent ({key.casefold()}){_ASK}",
                    )
                )
            case "tools":
                _check_tools(value)
            case "messages" | "system":
                _check_content(value)
            case _:
                pass


def _check_tools(tools: object) -> None:
    for tool in tools if isinstance(tools, list) else [tools]:
        if not isinstance(tool, dict):
            continue
        kinds = [value for key, value in tool.items() if key.casefold() == "type"]
        for kind in kinds:
            if kind is None or kind == "custom":
                continue
            if not isinstance(kind, str) or not _CLIENT_TOOL.fullmatch(kind):
                shown = kind[:60] if isinstance(kind, str) else "of no known type"
                raise _RefusedError(
                    deny(
                        "provider-tools",
                        f"the tool {shown!a} runs at the provider, which would reach out for the agent{_ASK}",
                    )
                )


def _check_content(value: object) -> None:
    for block in _objects(value):
        for key, item in block.items():
            match key.casefold():
                case "source" if isinstance(item, dict):
                    kinds = [kind for name, kind in item.items() if name.casefold() == "type"]
                    if not kinds or not all(
                        isinstance(kind, str) and kind in _CARRIED_SOURCES for kind in kinds
                    ):
                        raise _RefusedError(
                            deny(
                                "url-source",
                                "a source must carry its content: by URL or file the provider would fetch it"
                                + _ASK,
                            )
                        )
                case "image_url":
                    # Not the provider's own, but what gateways of other models understand.
                    raise _RefusedError(deny("url-source", "images must carry their content" + _ASK))
                case "file_id":
                    raise _RefusedError(deny("url-source", "files stored at the provider are refused" + _ASK))
                case _:
                    pass


def _objects(value: object) -> Iterator[dict[str, object]]:
    """Yield every object below, but what a tool was called with: that is opaque data to everybody."""
    level: list[object] = [value]
    for _ in range(_MAX_DEPTH + 1):
        below: list[object] = []
        for item in level:
            if isinstance(item, dict):
                yield item
                if item.get("type") == "tool_use":
                    below += (child for key, child in item.items() if key != "input")
                else:
                    below += item.values()
            elif isinstance(item, list):
                below += item
        if not below:
            return
        level = below
    if any(isinstance(item, dict | list) for item in level):
        raise _RefusedError(malformed("body", "the body is nested too deeply"))
