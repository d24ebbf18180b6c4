"""One file for each thing that we know how to find in a Dynamo graph."""
