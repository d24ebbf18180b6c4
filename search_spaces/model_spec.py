"""What a decoder-only transformer's shape is, as far as its kernels are concerned."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Literal

# Wide enough for every published model of these families, and small enough that a mistyped number is refused.
LIMITS: dict[str, tuple[int, int]] = {
    "layers": (1, 1024),
    "hidden": (1, 1 << 17),
    "inter": (0, 1 << 20),
    "q_heads": (1, 4096),
    "kv_heads": (1, 4096),
    "head_dim": (1, 1024),
    "vocab": (1, 1 << 22),
    "window": (0, 1 << 24),
    "window_layers": (0, 1024),
    "dense_layers": (0, 1024),
    "experts": (0, 4096),
    "top_k": (0, 4096),
    "moe_inter": (0, 1 << 20),
    "shared_inter": (0, 1 << 20),
}


class ModelError(ValueError):
    """A model that is unknown, cannot be read or makes no sense; the message is one line."""


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """One model, or one rank's shard of it. Sizes count elements; a field that does not apply is 0.

    `qk_norm` says what the RMSNorm of q and k runs over: each head ("head", Qwen3), the whole projection
    ("row", OLMoE), or nothing. `window_layers` of the layers see only the last `window` tokens.
    `dense_layers` of them have a plain SwiGLU of width `inter`, the others `experts` experts of width
    `moe_inter`, `top_k` per token, and a shared expert of width `shared_inter`. `tp` is how many ranks share
    the model.

    Raises ModelError for a number out of range or numbers that contradict each other.
    """

    name: str
    family: str
    layers: int
    hidden: int
    q_heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    dense_layers: int
    inter: int = 0
    qkv_bias: bool = False
    o_bias: bool = False
    qk_norm: Literal["none", "head", "row"] = "none"
    window: int = 0
    window_layers: int = 0
    experts: int = 0
    top_k: int = 0
    moe_inter: int = 0
    renormalize: bool = False
    shared_inter: int = 0
    tied_embeddings: bool = False
    tp: int = 1
    source: str = ""

    @property
    def moe_layers(self) -> int:
        """Layers with experts."""
        return self.layers - self.dense_layers

    def __post_init__(self) -> None:
        for field in fields(self):
            if field.name in LIMITS:
                low, high = LIMITS[field.name]
                value = getattr(self, field.name)
                if not low <= value <= high:
                    raise ModelError(f"{self.name}: {field.name}={value} is outside {low}..{high}")
        if self.q_heads % self.kv_heads:
            raise ModelError(f"{self.name}: {self.q_heads} query heads are no multiple of {self.kv_heads} KV heads")
        if self.dense_layers > self.layers or self.window_layers > self.layers:
            raise ModelError(f"{self.name}: more dense or windowed layers than its {self.layers} layers")
        if self.window_layers and not self.window:
            raise ModelError(f"{self.name}: {self.window_layers} windowed layers, but the window is 0")
        if self.dense_layers and not self.inter:
            raise ModelError(f"{self.name}: {self.dense_layers} dense layers, but their width is 0")
        if self.moe_layers and not (1 <= self.top_k <= self.experts and self.moe_inter):
            raise ModelError(
                f"{self.name}: {self.top_k} of {self.experts} experts of width {self.moe_inter} make no layer"
            )

    def shard(self, tp: int) -> ModelSpec:
        """What one of `tp` tensor-parallel ranks holds: heads, MLP widths and the vocabulary are split.

        Experts are not distributed, each is split. KV heads are copied where there are fewer of them than
        ranks. The vocabulary is padded up to a multiple of `tp`. Raises ModelError where a size does not
        divide.
        """
        if tp < 1:
            raise ModelError(f"tensor parallel degree {tp} is not a positive number")
        if self.tp != 1:
            raise ModelError(f"{self.name} is already one of {self.tp} shards")
        for what, size in {
            "query heads": self.q_heads,
            "KV heads": self.kv_heads if self.kv_heads >= tp else tp if tp % self.kv_heads == 0 else self.kv_heads,
            "MLP width": self.inter,
            "expert width": self.moe_inter,
            "shared expert width": self.shared_inter,
        }.items():
            if size % tp:
                raise ModelError(f"{self.name}: {what} {size} cannot be divided among {tp} ranks")
        return replace(
            self,
            tp=tp,
            q_heads=self.q_heads // tp,
            kv_heads=max(1, self.kv_heads // tp),
            inter=self.inter // tp,
            moe_inter=self.moe_inter // tp,
            shared_inter=self.shared_inter // tp,
            vocab=-(-self.vocab // tp),
        )
