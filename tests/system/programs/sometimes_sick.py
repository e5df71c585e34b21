"""An HTTP server that answers 503 while a file exists: `sometimes_sick.py ADDRESS PORT NAME FILE`."""

import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


def main(address: str, port: str, name: str, sick: str) -> None:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # head and body leave together: an answer that was begun cannot be asked for again elsewhere

        def do_GET(self) -> None:
            body = f"{name} {self.headers.get('x-forwarded-client-cert', '')}\n".encode()
            self.send_response(503 if Path(sick).exists() else 200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Says nothing: the lab keeps what programs print."""

    ThreadingHTTPServer((address, int(port)), Handler).serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
