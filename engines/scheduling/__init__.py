"""Who runs next, with whom, and who is told no. All pure: no clock, no await, no lock, no log."""
