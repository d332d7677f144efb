"""Stands in for gpt4all."""
