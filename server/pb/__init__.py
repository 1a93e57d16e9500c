"""Generated protocol buffers: the KServe v2 service with Triton's extensions (`make protos` writes them)."""
