"""Artefacts that others can use: whole models, checked against what they were made of before they are published."""
