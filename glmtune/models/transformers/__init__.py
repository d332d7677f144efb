"""Families that transformers has itself: nothing but their facts."""
