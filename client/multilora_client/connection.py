"""Where the server is, and the gRPC channels to it."""

from dataclasses import dataclass

import grpc
import grpc.aio

from multilora_client.errors import invalid
from multilora_client.protocol import CHANNEL_OPTIONS


@dataclass(frozen=True)
class Endpoint:
    """The gRPC address of a Triton server. Made from `host:port` or `grpc[s]://host:port`."""

    address: str
    secure: bool

    @classmethod
    def parse(cls, url: str) -> "Endpoint":
        scheme, separator, address = url.rpartition("://")
        if scheme not in ("", "grpc", "grpcs") or (separator and not scheme):
            raise invalid(f"the client speaks gRPC: give host:port or grpcs://host:port, not {url}")
        if not address or address.endswith("/") or any(c.isspace() for c in address):
            raise invalid(f"a server address looks like localhost:8001; got {url!r}")
        return cls(address if ":" in address else f"{address}:8001", scheme == "grpcs")

    def channel(self) -> grpc.Channel:
        if self.secure:
            credentials = grpc.ssl_channel_credentials()
            return grpc.secure_channel(self.address, credentials, CHANNEL_OPTIONS)
        return grpc.insecure_channel(self.address, CHANNEL_OPTIONS)

    def aio_channel(self) -> grpc.aio.Channel:
        if self.secure:
            credentials = grpc.ssl_channel_credentials()
            return grpc.aio.secure_channel(self.address, credentials, CHANNEL_OPTIONS)
        return grpc.aio.insecure_channel(self.address, CHANNEL_OPTIONS)
