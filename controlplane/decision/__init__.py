"""The pure decision core: no clock, no randomness, no I/O."""
