"""The rest of the work is Inductor's: lower a rewritten graph, with our identity in the keys of the compile caches.

AOTAutogradCache and FxGraphCache key the rewritten graph and Inductor's config. What they cannot see, a changed fake or
body of one of our operators, comes in through a pass that does nothing but have a uuid. The tuning database is not part
of the key: configs are read when an operator runs, so another database may use the same compiled graph.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from torch import fx
from torch._inductor.custom_graph_pass import CustomGraphPass

from ..version import __version__
from .ops.define import SCHEMA_VERSION

# Where a pass can stand whose uuid becomes part of the key. A hook takes a single pass in torch 2.11 (lists came
# later), so ours goes where the user has none.
HOOKS = ("post_grad_custom_pre_pass", "post_grad_custom_post_pass", "joint_custom_post_pass", "joint_custom_pre_pass")

Compiled = Callable[..., Any]
"""What a backend returns. Inductor's result is handed on unwrapped: wrapping it would hide its static inputs."""


class CacheKeyPass(CustomGraphPass):
    """Changes nothing; its uuid is part of the compile caches' key."""

    def __init__(self, key: str) -> None:
        self.key = key

    def __call__(self, graph: fx.Graph) -> None:
        return None

    def uuid(self) -> str:
        return self.key


def cache_key(disabled: Iterable[str] = ()) -> str:
    """Our identity: version, schema version, the source of this package, and the patterns that were switched off.

    Which sites were kept needs no place in it: that is in the graph.
    """
    without = ",".join(sorted(disabled)) or "none"
    return f"paiton {__version__} schema {SCHEMA_VERSION} source {source_digest()} without {without}"


@functools.cache
def source_digest(folder: Path = Path(__file__).parent) -> str:
    """Digest of every source file of the package; "unknown" where they cannot be read, as in a zip file."""
    digest = hashlib.sha256()
    try:
        for path in sorted(folder.rglob("*.py")):
            digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    except OSError:
        return "unknown"
    return digest.hexdigest()[:16]


def lower(
    module: fx.GraphModule, example_inputs: Sequence[Any], how: str, patches: Mapping[str, Any], key: str | None
) -> Compiled:
    """Compile a graph. `how` is "inductor", "aot_eager" or "eager"; `key` is None for a graph without our operators.

    A graph that we left as it was is thus compiled, and cached, exactly as without this backend. Owns `module`:
    Inductor may change it.
    """
    if how == "eager":
        return module.forward
    if how == "aot_eager":
        from torch._dynamo.backends.debugging import aot_eager

        compiled: Any = aot_eager(module, list(example_inputs))
        return cast(Compiled, compiled)
    from torch._inductor.compile_fx import compile_fx

    if key is not None:
        patches = {**patches, **_key_patches(patches, key)}
    # Patches as an argument and not around the call: what is lowered later, outside of it, needs them too.
    result: Any = compile_fx(module, example_inputs, config_patches=dict(patches))
    return cast(Compiled, result)


def _key_patches(patches: Mapping[str, Any], key: str) -> dict[str, Any]:
    from torch._inductor import config

    for hook in HOOKS:
        if patches.get(hook, getattr(config, hook)) is None:
            return {hook: CacheKeyPass(key)}
    # Every hook is the user's: our identity cannot be told, so nothing may be cached.
    return {"force_disable_caches": True}
