"""Serving models: the KServe v2 gRPC front of the engines, and what surrounds it."""
