"""CloudClaw's runtime plane: the warm slots of one host."""

import os

# Slots are started by fork and exec under another uid. gRPC's fork handlers run in the child in between and, when its
# threads are at work, crash it there (seen as SIGSEGV). Nothing here goes on after a fork, so nothing needs them.
# gRPC reads this when it is imported, hence before anything else.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
