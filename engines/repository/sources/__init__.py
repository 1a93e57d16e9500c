"""Repositories that are not folders: object stores and model registries, mirrored into folders that are."""
