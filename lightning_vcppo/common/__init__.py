"""Helpers that every other package may use; they know none of them."""
