"""The static performance model: modelled times of configs on a device that need not be there. See docs/model.md."""
