"""Our own gRPC server over HTTP/2, for asyncio.

From the inside out: `frames`, `hpack` and `huffman` are bytes; `requests`, `metadata` and `messages` give them
gRPC's meaning; `streams`, `sender`, `calm` and `connection` are the protocol, without a socket; `call`, `methods`,
`blocking` and `dispatch` run handlers; `session` and `server` put it all on an event loop.
"""

from server.transport.http2.calm import PingLimits
from server.transport.http2.limits import Limits
from server.transport.http2.options import Options
from server.transport.http2.server import Server
from server.transport.http2.statistics import Statistics
from server.transport.http2.tls import TlsOptions, following
from server.transport.http2.turns import Turns

__all__ = ["Limits", "Options", "PingLimits", "Server", "Statistics", "TlsOptions", "Turns", "following"]
