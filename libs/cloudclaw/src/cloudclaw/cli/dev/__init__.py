"""`claw dev`: a whole CloudClaw on loopback, as child processes of one command."""
