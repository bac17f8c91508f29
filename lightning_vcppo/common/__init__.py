"""Provide helpers that every other package may use, and that import none of them."""
