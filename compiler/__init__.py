"""The torch.compile backend: finds what our kernels compute in a Dynamo graph; Inductor compiles the rest."""
