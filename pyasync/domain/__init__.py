"""The rules of the framework as pure code: no clock, no threads, no I/O."""
