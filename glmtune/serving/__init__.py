"""Answers over HTTP, in the dialects that programs speak."""
