"""Who calls, what they may do, and how often: pure decisions, without a word of gRPC."""
