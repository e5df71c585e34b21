"""A program that knows nothing of the mesh: answers every GET and POST with who it is and who, it was told, asked.

Standard library only. Reads ADDRESS, PORT, NAME, ZONE and CLUSTER from its environment.
"""

import json
import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class WhoAmI(BaseHTTPRequestHandler):
    """Answers with JSON and keeps the connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # head and body leave together, or the body waits for the client's delayed ACK

    def do_GET(self) -> None:
        """Says who answers."""
        self._answer(received=0)

    def do_POST(self) -> None:
        """Reads the body and says who answers."""
        self._answer(received=len(self.rfile.read(int(self.headers.get("content-length", 0)))))

    def _answer(self, received: int) -> None:
        facts = {name.lower(): os.environ.get(name, "") for name in ("NAME", "CLUSTER", "ZONE")}
        caller = self.headers.get("x-forwarded-client-cert", "")
        body = json.dumps({**facts, "path": self.path, "received": received, "caller": caller}).encode() + b"\n"
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is http.server's
        """Keeps quiet: hundreds of lines a second say nothing."""


class Server(ThreadingHTTPServer):
    """One thread a connection."""

    daemon_threads = True
    request_queue_size = 128


if __name__ == "__main__":
    Server((os.environ.get("ADDRESS", "127.0.0.1"), int(os.environ.get("PORT", "8080"))), WhoAmI).serve_forever()
