"""What agents say on their standard output, as events: pure functions of an attempt's log.

The log is durable, ordered and kept; events are a view of it, so every replica and every node derives the same ones.
"""
