"""`claw dev`: a whole CloudClaw on loopback, as child processes of one command."""

import os

# Children are exec'd at once, so gRPC has nothing to do at a fork, and need not remark on it. Before gRPC is imported.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
