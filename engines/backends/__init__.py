"""Engines of several kinds behind one protocol."""
