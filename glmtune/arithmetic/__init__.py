"""Exact arithmetic in texts: expressions, problems, their working, and the numbers that answers end with."""
