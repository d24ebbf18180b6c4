"""The operators that stand in a rewritten graph, one file for each family; importing this package registers them."""
