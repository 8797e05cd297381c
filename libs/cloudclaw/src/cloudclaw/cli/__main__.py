"""Entry point of `claw` and of `python -m cloudclaw.cli`."""

from __future__ import annotations

from cloudclaw.cli.app import app
from cloudclaw.cli.output import open_streams


def main() -> None:
    """Run the command that the arguments name; exits with the codes of `cloudclaw.cli.failures`."""
    open_streams()
    app(prog_name="claw")


if __name__ == "__main__":
    main()
