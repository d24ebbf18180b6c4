"""Which config the kernel takes."""

from contextlib import contextmanager

_config = None


@contextmanager
def override_config(config):
    global _config
    old, _config = _config, config
    try:
        yield
    finally:
        _config = old


def get_config():
    return _config
