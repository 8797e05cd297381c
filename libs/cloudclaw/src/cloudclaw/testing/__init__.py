"""Support for tests and demos of CloudClaw, also for users' own. No service imports it."""
