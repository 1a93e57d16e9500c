"""Memoization: answers remembered in this process and, through Redis, by all replicas."""
