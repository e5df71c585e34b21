"""A gRPC program that knows nothing of a mesh: a server (`serve ADDRESS NAME`) and a client (`call TARGET`)."""

import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc

UNARY, STREAM = "/test.Echo/Unary", "/test.Echo/Stream"


class Echo(grpc.GenericRpcHandler):
    def __init__(self, name: str) -> None:
        self._name = name.encode()

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        match details.method:
            case "/test.Echo/Unary":
                return grpc.unary_unary_rpc_method_handler(lambda request, _: self._name + b":" + request)
            case "/test.Echo/Stream":
                return grpc.unary_stream_rpc_method_handler(self._stream)
            case _:
                return None

    def _stream(self, request: bytes, _: grpc.ServicerContext) -> Iterator[bytes]:
        for n in range(int(request)):
            yield self._name + b":" + str(n).encode()
            time.sleep(0.01)


def serve(address: str, name: str) -> None:
    server = grpc.server(ThreadPoolExecutor(8))
    server.add_generic_rpc_handlers((Echo(name),))
    server.add_insecure_port(address)
    server.start()
    server.wait_for_termination()


def call(target: str) -> None:
    with grpc.insecure_channel(target) as channel:
        print("unary", channel.unary_unary(UNARY)(b"hello", timeout=10, wait_for_ready=True).decode())
        answers = [answer.decode() for answer in channel.unary_stream(STREAM)(b"50", timeout=20)]
        print("stream", len(answers), answers[0], answers[-1])


if __name__ == "__main__":
    {"serve": serve, "call": call}[sys.argv[1]](*sys.argv[2:])
