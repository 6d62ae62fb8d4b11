"""Trials of what docs/reliability.md promises, each with its result file."""
