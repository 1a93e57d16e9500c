"""CUDA as the engines use it: one small protocol, three implementations."""
