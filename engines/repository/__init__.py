"""Where models come from: folders, their configuration, and the life of each version."""
