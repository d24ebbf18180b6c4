"""The many spellings of one tensor operation in a Dynamo graph, folded to one name each.

Dynamo keeps what the model's author wrote: `x.pow(2)` or `torch.pow(x, 2)`, `.to(torch.float32)` or `.float()`,
`operator.add`, `torch.add` or `Tensor.add`. In-place forms keep a name of their own, ending in `_`. A target that this
torch version does not have is left out; tests/compiler/test_spellings.py says which.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F

CAST = "cast"

# name -> where its functions live, as attributes of a module.
_FUNCTIONS: Mapping[str, tuple[tuple[Any, str], ...]] = {
    "add": ((operator, "add"), (torch, "add")),
    "add_": ((operator, "iadd"),),
    "sub": ((operator, "sub"), (torch, "sub"), (torch, "subtract")),
    "sub_": ((operator, "isub"),),
    "mul": ((operator, "mul"), (torch, "mul"), (torch, "multiply")),
    "mul_": ((operator, "imul"),),
    "div": ((operator, "truediv"), (torch, "div"), (torch, "divide"), (torch, "true_divide")),
    "div_": ((operator, "itruediv"),),
    "floordiv": ((operator, "floordiv"), (torch, "floor_divide")),
    "neg": ((operator, "neg"), (torch, "neg"), (torch, "negative")),
    "pow": ((operator, "pow"), (torch, "pow")),
    "square": ((torch, "square"),),
    "rsqrt": ((torch, "rsqrt"),),
    "mean": ((torch, "mean"),),
    "sum": ((torch, "sum"),),
    "cat": ((torch, "cat"), (torch, "concat"), (torch, "concatenate")),
    "getitem": ((operator, "getitem"),),
    "setitem": ((operator, "setitem"),),
    "linear": ((F, "linear"), (torch._C._nn, "linear")),
    "silu": ((F, "silu"), (torch._C._nn, "silu"), (torch, "silu")),
    "sigmoid": ((torch, "sigmoid"), (F, "sigmoid")),
    "softmax": ((F, "softmax"), (torch, "softmax")),
    "topk": ((torch, "topk"),),
    "sdpa": ((F, "scaled_dot_product_attention"), (torch._C._nn, "scaled_dot_product_attention")),
    "rms_norm": ((F, "rms_norm"), (torch, "rms_norm")),
    "grouped_mm": ((F, "grouped_mm"), (torch, "_grouped_mm")),
    "bmm": ((torch, "bmm"),),
    "sort": ((torch, "sort"),),
    "argsort": ((torch, "argsort"),),
    "chunk": ((torch, "chunk"),),
    "split": ((torch, "split"),),
    "reshape": ((torch, "reshape"),),
    "flatten": ((torch, "flatten"),),
    "transpose": ((torch, "transpose"), (torch, "swapaxes"), (torch, "swapdims")),
    "permute": ((torch, "permute"),),
    "unsqueeze": ((torch, "unsqueeze"),),
    "squeeze": ((torch, "squeeze"),),
    "repeat_interleave": ((torch, "repeat_interleave"),),
    "empty_like": ((torch, "empty_like"),),
    "index_add": ((torch, "index_add"),),
    "ge": ((operator, "ge"), (torch, "ge"), (torch, "greater_equal")),
    "clamp": ((torch, "clamp"), (torch, "clip")),
    "masked_fill": ((torch, "masked_fill"),),
    "arange": ((torch, "arange"),),
    "histc": ((torch, "histc"),),
    "cumsum": ((torch, "cumsum"),),
    "clone": ((torch, "clone"),),
}

_SAME_NAME = (
    "add add_ sub sub_ mul mul_ div div_ neg pow square rsqrt mean sum view reshape transpose permute unsqueeze"
    " squeeze expand contiguous chunk split softmax topk sort argsort repeat_interleave sigmoid index_copy_ index_add"
    " index_add_ flatten clone detach ge clamp clamp_ masked_fill masked_fill_ cumsum bmm histc copy_ view_as"
    " expand_as reshape_as"
)
_METHODS: Mapping[str, str] = {
    **{name: name for name in _SAME_NAME.split()},
    **dict.fromkeys(("to", "float", "half", "bfloat16", "double", "int", "long", "type"), CAST),
    "true_divide": "div", "divide": "div", "multiply": "mul", "floor_divide": "floordiv", "__getitem__": "getitem",
    "swapaxes": "transpose", "swapdims": "transpose", "clip": "clamp", "negative": "neg", "greater_equal": "ge",
}  # fmt: skip

# Custom operators by qualified name: transformers' own grouped product where torch has none for the dtype or device.
_OPERATORS: Mapping[str, str] = {
    "transformers::grouped_mm_fallback": "grouped_mm",
    "aten::_grouped_mm": "grouped_mm",
    "aten::linear": "linear",
    "aten::silu": "silu",
    "aten::bmm": "bmm",
}

_NAME_OF: dict[Any, str] = {
    getattr(module, attribute): name
    for name, places in _FUNCTIONS.items()
    for module, attribute in places
    if hasattr(module, attribute)
}


def absent() -> tuple[str, ...]:
    """The spellings this torch version does not have, as `name:attribute`."""
    return tuple(
        f"{name}:{attribute}"
        for name, places in _FUNCTIONS.items()
        for module, attribute in places
        if not hasattr(module, attribute)
    )


def name_of_function(target: Any) -> str | None:
    """The canonical name of a call_function target, or None."""
    try:
        found = _NAME_OF.get(target)
    except TypeError:  # unhashable
        return None
    if found is not None:
        return found
    if isinstance(target, torch._ops.OpOverload):
        return _OPERATORS.get(target._schema.name)
    if isinstance(target, torch._ops.OpOverloadPacket):
        return _OPERATORS.get(target._qualified_op_name)
    return None


def name_of_method(target: str) -> str | None:
    """The canonical name of a call_method target, or None."""
    return _METHODS.get(target)
