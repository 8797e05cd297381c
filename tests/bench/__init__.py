"""Benchmarks against the budgets of the design; see README.md."""
