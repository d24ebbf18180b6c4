"""Config: one point of a search space, an immutable mapping of parameter names to integers or words."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

Value = int | str

MAX_JSON_CHARS = 4096


class InvalidConfig(ValueError):
    """A config text or value that is not a flat mapping of names to integers or words."""


class Config(Mapping[str, Value]):
    """Immutable, hashable and ordered by name, so that equal configs have equal JSON.

    >>> Config.of(num_warps=4, BLOCK_M=16).json()
    '{"BLOCK_M":16,"num_warps":4}'
    """

    __slots__ = ("_hash", "_items", "_values")

    def __init__(self, values: Mapping[str, Value]) -> None:
        for name, value in values.items():
            if isinstance(value, bool) or not isinstance(value, (int, str)):
                raise InvalidConfig(f"config value {name}={value!r} is neither an integer nor a word")
        self._items = tuple(sorted(values.items()))
        self._values = dict(self._items)
        self._hash = hash(self._items)

    @classmethod
    def of(cls, **values: Value) -> Config:
        """Config from keyword arguments."""
        return cls(values)

    @classmethod
    def from_json(cls, text: str) -> Config:
        """Parse canonical JSON. Raises InvalidConfig for anything but a flat object of integers and words."""
        if len(text) > MAX_JSON_CHARS:
            raise InvalidConfig(f"config text has {len(text)} characters, at most {MAX_JSON_CHARS} are accepted")
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InvalidConfig(f"config text {text[:80]!r} is not JSON: {error}") from None
        if not isinstance(data, dict):
            raise InvalidConfig(f"config text {text[:80]!r} is not a JSON object")
        return cls(data)

    def json(self) -> str:
        """Canonical JSON: sorted names, no spaces, ASCII."""
        return json.dumps(self._values, separators=(",", ":"), ensure_ascii=True)

    def replace(self, **values: Value) -> Config:
        """A copy with some values changed or added."""
        return Config({**self._values, **values})

    def integer(self, name: str, default: int | None = None) -> int:
        """The integer `name`, or `default` where the config lacks it. Raises KeyError without a default."""
        value = self._values.get(name, default)
        if value is None:
            raise KeyError(name)
        if not isinstance(value, int):
            raise InvalidConfig(f"config value {name}={value!r} is not an integer")
        return value

    def word(self, name: str, default: str | None = None) -> str:
        """The word `name`, or `default` where the config lacks it. Raises KeyError without a default."""
        value = self._values.get(name, default)
        if value is None:
            raise KeyError(name)
        if not isinstance(value, str):
            raise InvalidConfig(f"config value {name}={value!r} is not a word")
        return value

    def __getitem__(self, name: str) -> Value:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Config):
            return self._items == other._items
        return NotImplemented

    def __reduce__(self) -> tuple[type[Config], tuple[dict[str, Value]]]:
        return (Config, (dict(self._values),))

    def __str__(self) -> str:
        return " ".join(f"{name}={value}" for name, value in self._items)

    def __repr__(self) -> str:
        return f"Config({self._values!r})"
