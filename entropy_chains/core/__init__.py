"""Tokens in, a decision out: standard library only, numpy and torch inside functions."""
