"""The commands of `autotune`, one file each."""
