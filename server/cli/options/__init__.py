"""The settings of `kairos serve`, a module a room: what is declared, and the options that come of it."""
