"""Watches the model, not only the server: what goes in, what comes out, and what became of it."""
