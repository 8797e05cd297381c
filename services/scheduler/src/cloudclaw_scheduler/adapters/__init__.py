"""Technology behind the scheduler's own ports."""
