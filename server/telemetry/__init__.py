"""What SREs see: counters, metrics, traces, logs."""
