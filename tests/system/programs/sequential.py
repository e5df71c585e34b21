"""Sends N requests one after the other over one kept-alive connection: `sequential.py URL N`; prints who answered."""

import collections
import http.client
import json
import os
import sys
from urllib.parse import urlsplit


def main(url: str, count: int) -> None:
    answers: collections.Counter[str] = collections.Counter()
    proxy = urlsplit(os.environ["http_proxy"])
    connection = http.client.HTTPConnection(str(proxy.hostname), proxy.port, timeout=20)
    for _ in range(count):
        response = ask(connection, url)
        answers[f"{response.status} {response.headers.get('x-isthmus-upstream', '')}"] += 1
    print(json.dumps(answers))


def ask(connection: http.client.HTTPConnection, url: str) -> http.client.HTTPResponse:
    """Sends one request and reads the answer; once more when the connection was closed while nothing was asked."""
    is_new = connection.sock is None
    try:
        connection.request("GET", url)
        response = connection.getresponse()
    except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError):
        connection.close()
        if is_new:
            raise
        return ask(connection, url)
    response.read()
    return response


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
