"""A small HTTP server that answers as vLLM's and llama.cpp's do, well or badly.

    fake_served.py PORT JOURNAL BEHAVIOUR

It writes a JSON line per request to JOURNAL. BEHAVIOUR: well; short (a token too few); hangs (never answers);
refuses (every second request, with 429); breaks (an error in the stream); dies:N (ends at the N-th request); sick (ends
at once).
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

PAUSE_S = 0.004


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    journal: Path
    behaviour: str
    lock = threading.Lock()
    num_asked = 0

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/health" else 404)
        self.send_header("content-length", "0")
        self.end_headers()

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with self.lock:
            type(self).num_asked += 1
            number = self.num_asked
            with self.journal.open("a") as file:
                file.write(json.dumps({"at": time.monotonic(), "path": self.path, "asked": asked}) + "\n")
        name, _, last = self.behaviour.partition(":")
        if name == "dies" and number >= int(last):
            print("out of luck", flush=True)
            os._exit(3)
        if name == "hangs":
            time.sleep(600)
        if name == "refuses" and number % 2 == 0:
            self._refuse()
            return
        self.send_response(200)
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        (self._llama if self.path == "/completion" else self._openai)(asked, name)
        self._write(b"")

    def _refuse(self) -> None:
        body = json.dumps({"error": {"code": "overloaded", "message": "full"}}).encode()
        self.send_response(429)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _openai(self, asked: dict[str, Any], name: str) -> None:
        """As vLLM: tokens may have no text, the last shares its event with the reason to end."""
        count = asked["max_tokens"] - (name == "short")
        for number in range(count):
            time.sleep(PAUSE_S)
            if name == "breaks" and number == 1:
                self._event({"error": {"message": "broken", "code": 500}})
                return
            reason = "length" if number + 1 == count else None
            token = {"text": "x" * (number % 2), "token_ids": [number], "finish_reason": reason}
            self._event({"choices": [{"index": 0, **token}]})
        self._event({"choices": [], "usage": {"completion_tokens": count}})
        self._write(b"data: [DONE]\n\n")

    def _llama(self, asked: dict[str, Any], name: str) -> None:
        """As llama.cpp: an event without tokens ends the stream, and comes with nothing after it."""
        count = asked["n_predict"] - (name == "short")
        for number in range(count):
            time.sleep(PAUSE_S)
            self._event({"index": 0, "content": "x" * (number % 2), "tokens": [number], "stop": False})
        self._event({"index": 0, "content": "", "tokens": [], "stop": True, "tokens_predicted": count})

    def _event(self, told: dict[str, Any]) -> None:
        self._write(b"data: " + json.dumps(told).encode() + b"\n\n")

    def _write(self, part: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))


def main(port: str, journal: str, behaviour: str) -> None:
    if behaviour == "sick":
        print("cannot /some/where/start", flush=True)
        sys.exit(4)
    Handler.journal, Handler.behaviour = Path(journal), behaviour
    ThreadingHTTPServer(("127.0.0.1", int(port)), Handler).serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
