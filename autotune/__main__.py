"""`python -m paiton.autotune` is the command line `autotune`."""

from .cli import main

main()
