"""Stands in for vLLM in tests: the functions that the adapter uses, as that project documents them, on CPU tensors."""
