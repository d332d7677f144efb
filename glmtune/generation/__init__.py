"""Prompts to answers."""
