"""Soft targets: what a served teacher says of rows that nobody has labelled."""
