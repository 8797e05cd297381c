"""Slots as containers of a Docker engine: the parts of `backends.docker`, one concern a file."""
