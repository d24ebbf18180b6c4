"""Decides: precompile, search, measure or estimate, and store the answer."""
