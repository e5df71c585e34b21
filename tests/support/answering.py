"""An HTTP/1.1 program that knows nothing of a mesh (`python answering.py ADDRESS PORT NAME`): says what it was asked.

After `/sicken` every answer is 503, until `/heal`; `?flags=UF` adds the header by which sidecars tell each other what
went wrong.
"""

import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = 65536  # head and body in one write: half an answer of a killed program could not be repeated by anybody
    name = ""
    calls = 0
    status = 200

    def answer(self) -> None:
        type(self).calls += 1
        self.rfile.read(int(self.headers.get("content-length", 0)))
        url = urlsplit(self.path)
        if url.path in {"/sicken", "/heal"}:
            type(self).status = 503 if url.path == "/sicken" else 200
        headers = {name.lower(): value for name, value in self.headers.items()}
        said = {"name": self.name, "method": self.command, "headers": headers, "calls": self.calls}
        body = json.dumps(said).encode()
        self.send_response(self.status)
        for flags in parse_qs(url.query).get("flags", ()):
            self.send_header("x-isthmus-flags", flags)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = do_PUT = answer  # noqa: N815 - names that http.server looks for

    def log_message(self, *_: object) -> None:
        """Says nothing."""


if __name__ == "__main__":
    address, port, Handler.name = sys.argv[1:]
    ThreadingHTTPServer.request_queue_size = 128
    ThreadingHTTPServer((address, int(port)), Handler).serve_forever()
