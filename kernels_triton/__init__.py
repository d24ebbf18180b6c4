"""The Triton kernels, each with its launcher, reference and specification."""
