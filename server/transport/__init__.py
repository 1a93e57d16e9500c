"""The KServe v2 protocol at the edge: bytes in, bytes out, and the status codes between."""
