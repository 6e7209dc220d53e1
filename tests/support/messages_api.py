"""A scripted Messages API on loopback, close enough to the real one for the real Claude Code.

A script is a list of turns, a turn is a list of content blocks (``text(...)``, ``bash(...)``). Each new
request of the main conversation (it offers tools) gets the next turn, a repeated one the same again, one
after the last turn a closing text. Side requests (titles, topics, quota) are answered with a few canned
words.

In a test::

    with MessagesApi([[bash("echo hi > f")], [text("Done.")]]) as api:
        ...  # ANTHROPIC_BASE_URL=api.url
        assert api.messages()[0].headers["x-api-key"] == KEY

On its own: ``python -m tests.support.messages_api --script FILE --port-file FILE --record FILE``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import ssl
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

Block = dict[str, Any]
Turn = list[Block]

CLOSING_WORDS = "That was all."
SIDE_WORDS = "Scripted session"
_PATIENCE = 60.0


def text(words: str) -> Block:
    """Return a block of text."""
    return {"type": "text", "text": words}


def bash(command: str, description: str = "Run a command") -> Block:
    """Return a call of Claude Code's Bash tool."""
    return tool_use("Bash", command=command, description=description)


def tool_use(name: str, **arguments: object) -> Block:
    """Return a call of any tool; the id is given when the turn is played."""
    return {"type": "tool_use", "name": name, "input": arguments}


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedRequest:
    """What a client sent. Header names are lower case; ``body`` is the parsed JSON or None."""

    method: str
    target: str
    headers: dict[str, str]
    body: Any
    main: bool
    """It belongs to the main conversation, not to a side request."""


class Pause:
    """Holds one turn back until the test has looked at the agent that waits for it."""

    def __init__(self) -> None:
        self.asked, self._over = threading.Event(), threading.Event()

    def hold(self) -> None:
        """Wait, as the server, for the test."""
        self.asked.set()
        self._over.wait(_PATIENCE)

    def end(self) -> None:
        """Let the turn be played."""
        self._over.set()


class MessagesApi:
    """The server; a context manager that serves in a thread.

    :param turns: the script.
    :param pauses: by the turn's index, what holds it back.
    :param host: address to listen on.
    :param record: append every request to this file as one JSON line.
    :param certificate: PEM file with key and certificate: serve TLS.
    :param prefix: what every path begins with; no other is known.
    """

    def __init__(
        self,
        turns: list[Turn],
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        record: Path | None = None,
        certificate: Path | None = None,
        pauses: Mapping[int, Pause] | None = None,
        prefix: str = "",
    ) -> None:
        self.turns = turns
        self.prefix = prefix
        self._pauses = pauses or {}
        self.requests: list[RecordedRequest] = []
        self._record = record
        self._lock = threading.Lock()
        self._played: dict[str, Turn] = {}
        self._next = 0
        api = self

        class Handler(_Handler):
            server_api = api

        self._server = _Server((host, port), Handler)
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self._scheme = "http" if certificate is None else "https"
        self._thread: threading.Thread | None = None

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return int(self._server.server_address[1])

    @property
    def url(self) -> str:
        """The value for ANTHROPIC_BASE_URL."""
        return f"{self._scheme}://127.0.0.1:{self.port}{self.prefix}"

    def messages(self) -> list[RecordedRequest]:
        """Return the requests of the main conversation."""
        with self._lock:
            return [request for request in self.requests if request.main]

    def serve_forever(self) -> None:
        """Serve in this thread."""
        self._server.serve_forever(poll_interval=0.05)

    def __enter__(self) -> MessagesApi:
        self._thread = threading.Thread(target=self.serve_forever, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        if self._thread is not None:
            self._thread.join()

    def note(self, request: RecordedRequest) -> None:
        """Keep a request for assertions."""
        with self._lock:
            self.requests.append(request)
            if self._record is not None:
                with self._record.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(asdict(request)) + "\n")

    def turn_for(self, body: dict[str, Any]) -> Turn:
        """Return the turn that answers a request of the main conversation."""
        # Retries repeat the conversation word for word and must not eat a turn; cache marks move about.
        conversation = json.dumps(_without_cache_marks(body.get("messages")), sort_keys=True)
        key = hashlib.sha256(conversation.encode()).hexdigest()
        pause = None
        with self._lock:
            if key not in self._played:
                pause = self._pauses.get(self._next)
                turn = self.turns[self._next] if self._next < len(self.turns) else [text(CLOSING_WORDS)]
                self._played[key] = [
                    {**block, "id": f"toolu_{self._next:012d}{index:010d}"}
                    if block["type"] == "tool_use"
                    else block
                    for index, block in enumerate(turn)
                ]
                self._next += 1
        if pause is not None:
            pause.hold()
        return self._played[key]


def _without_cache_marks(value: object) -> object:
    if isinstance(value, dict):
        return {key: _without_cache_marks(item) for key, item in value.items() if key != "cache_control"}
    if isinstance(value, list):
        return [_without_cache_marks(item) for item in value]
    return value


def is_main(body: object) -> bool:
    """Tell whether a request belongs to the main conversation: only that one offers the agent's tools."""
    if not isinstance(body, dict) or not isinstance(body.get("tools"), list):
        return False
    return any(isinstance(tool, dict) and tool.get("name") == "Bash" for tool in body["tools"])


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of clients that hang up: tests make them do so."""


class _Handler(BaseHTTPRequestHandler):
    server_api: MessagesApi
    protocol_version = "HTTP/1.1"
    # Small writes must go out at once, or Nagle's algorithm holds the stream back.
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_CONNECT(self) -> None:
        """Refuse to be a proxy, as a session's gateway does; the request is noted like any other."""
        self._answer()

    def _answer(self) -> None:
        raw = self.rfile.read(int(self.headers.get("content-length") or 0))
        try:
            body = json.loads(raw) if raw else None
        except ValueError:
            body = None
        path, prefix = self.path.split("?")[0], self.server_api.prefix
        path = path.removeprefix(prefix) if path.startswith(prefix) else "/elsewhere"
        main = self.command == "POST" and path == "/v1/messages" and is_main(body)
        self.server_api.note(
            RecordedRequest(
                method=self.command,
                target=self.path,
                headers={name.lower(): value for name, value in self.headers.items()},
                body=body,
                main=main,
            )
        )
        if path == "/":
            self._json(200, {})
        elif self.command == "GET" and path.startswith("/v1/models"):
            self._json(200, {"data": [], "has_more": False, "first_id": None, "last_id": None})
        elif self.command == "POST" and path == "/v1/messages/count_tokens":
            self._json(200, {"input_tokens": max(1, len(raw) // 4)})
        elif self.command == "POST" and path == "/v1/messages" and isinstance(body, dict):
            turn = self.server_api.turn_for(body) if main else [text(_side_words(body))]
            if body.get("stream"):
                self._stream(body, turn)
            else:
                message = _message(body, turn)
                message["content"] = turn
                message["stop_reason"] = _stop_reason(turn)
                self._json(200, message)
        else:
            self._json(404, {"type": "error", "error": {"type": "not_found_error", "message": "Not found"}})

    def _json(self, status: int, document: object) -> None:
        content = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.send_header("request-id", "req_scripted")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _stream(self, body: dict[str, Any], turn: Turn) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream; charset=utf-8")
        self.send_header("cache-control", "no-cache")
        self.send_header("transfer-encoding", "chunked")
        self.send_header("request-id", "req_scripted")
        self.end_headers()
        self._event("message_start", message=_message(body, []))
        self._event("ping")
        for index, block in enumerate(turn):
            if block["type"] == "tool_use":
                self._event("content_block_start", index=index, content_block={**block, "input": {}})
                for part in ("", *_pieces(json.dumps(block["input"]))):
                    delta = {"type": "input_json_delta", "partial_json": part}
                    self._event("content_block_delta", index=index, delta=delta)
            else:
                self._event("content_block_start", index=index, content_block={**block, "text": ""})
                for part in _pieces(block["text"]):
                    delta = {"type": "text_delta", "text": part}
                    self._event("content_block_delta", index=index, delta=delta)
            self._event("content_block_stop", index=index)
        self._event(
            "message_delta",
            delta={"stop_reason": _stop_reason(turn), "stop_sequence": None},
            usage={"input_tokens": 10, "output_tokens": 10},
        )
        self._event("message_stop")
        self.wfile.write(b"0\r\n\r\n")

    def _event(self, name: str, **fields: object) -> None:
        line = f"event: {name}\ndata: {json.dumps({'type': name, **fields})}\n\n".encode()
        self.wfile.write(b"%x\r\n%b\r\n" % (len(line), line))


def _pieces(words: str, size: int = 40) -> list[str]:
    return [words[at : at + size] for at in range(0, len(words), size)]


def _stop_reason(turn: Turn) -> str:
    return "tool_use" if any(block["type"] == "tool_use" for block in turn) else "end_turn"


def _message(body: dict[str, Any], content: Turn) -> dict[str, Any]:
    return {
        "id": "msg_scripted",
        "type": "message",
        "role": "assistant",
        "model": body.get("model", "scripted"),
        "content": content,
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {
            "input_tokens": 10,
            "output_tokens": 1,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "service_tier": "standard",
        },
    }


def _side_words(body: dict[str, Any]) -> str:
    # Titles are asked for as JSON by a schema or in the system prompt.
    asked = json.dumps(body.get("output_config") or body.get("output_format") or body.get("system") or "")
    if "isNewTopic" in asked:
        return json.dumps({"isNewTopic": False, "title": SIDE_WORDS})
    if "title" in asked and "json" in asked.lower():
        return json.dumps({"title": SIDE_WORDS})
    return SIDE_WORDS


def main() -> None:
    """Serve a script until killed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--script", type=Path, required=True, help="JSON file: a list of turns")
    parser.add_argument("--port-file", type=Path, required=True, help="receives the port, appears complete")
    parser.add_argument("--record", type=Path, required=True, help="receives one JSON line per request")
    arguments = parser.parse_args()
    api = MessagesApi(json.loads(arguments.script.read_text()), record=arguments.record)
    partial = arguments.port_file.with_name(arguments.port_file.name + ".part")
    partial.write_text(f"{api.port}\n")
    os.replace(partial, arguments.port_file)  # noqa: PTH105
    api.serve_forever()


if __name__ == "__main__":
    main()
