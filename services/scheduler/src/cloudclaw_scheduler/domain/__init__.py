"""Rules of the control plane: no I/O, no protobuf, no clock."""
