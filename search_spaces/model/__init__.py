"""The static performance model: modelled times of configs on a device that may be absent (docs/model.md)."""
