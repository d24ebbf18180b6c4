"""Presets, config.json files and the problems they lead to, against numbers worked out by hand."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paiton.search_spaces.arch import resolve
from paiton.search_spaces.hf_config import parse_config
from paiton.search_spaces.load_model import MAX_CONFIG_BYTES, load_model
from paiton.search_spaces.model_spec import ModelError, ModelSpec
from paiton.search_spaces.presets import ALIASES, PRESETS
from paiton.search_spaces.registry import space_of
from paiton.search_spaces.workload import (
    DECODE_BATCH_SIZES,
    PREFILL_LENGTHS,
    WorkItem,
    WorkloadError,
    problems,
)

QWEN3_MOE: dict[str, Any] = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "attention_bias": False,
    "decoder_sparse_step": 1,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "max_window_layers": 48,
    "mlp_only_layers": [],
    "model_type": "qwen3_moe",
    "moe_intermediate_size": 768,
    "norm_topk_prob": True,
    "num_attention_heads": 32,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 48,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
QWQ: dict[str, Any] = {
    "hidden_act": "silu",
    "hidden_size": 5120,
    "intermediate_size": 27648,
    "max_window_layers": 64,
    "model_type": "qwen2",
    "num_attention_heads": 40,
    "num_hidden_layers": 64,
    "num_key_value_heads": 8,
    "sliding_window": 32768,
    "use_sliding_window": False,
    "tie_word_embeddings": False,
    "vocab_size": 152064,
}
MIXTRAL: dict[str, Any] = {
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "model_type": "mixtral",
    "num_attention_heads": 32,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "num_local_experts": 8,
    "sliding_window": None,
    "vocab_size": 32000,
}
LLAMA: dict[str, Any] = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
}


def _steps(items: tuple[WorkItem, ...], batch: int) -> dict[str, int]:
    """`kernel[signature]` -> calls per step, at one batch."""
    return {
        f"{item.problem.kernel}[{item.problem.signature}]": item.calls_per_step
        for item in items
        if item.problem.batch == batch
    }


def test_qwen3_30b_decode_and_prefill_by_hand() -> None:
    items = problems(load_model("Qwen3-30B-A3B"))
    attention = "context=4096,head_dim=128,kv_heads=4,q_heads=32"
    experts = "[experts=128,hidden=2048,inter=768,top_k=8]"
    assert _steps(items, 1) == {
        "rms_norm[hidden=2048]": 49,  # 48 behind o_proj, which carries the residual, and the first
        "add_rms_norm[hidden=2048]": 96,
        "linear[bias=0,k=2048,n=128,residual=0]": 48,
        "linear[bias=0,k=2048,n=151936,residual=0]": 1,
        "linear[bias=0,k=4096,n=2048,residual=1]": 48,
        "linear_qkv[bias=0,k=2048,n_kv=512,n_q=4096]": 48,
        "qk_norm_rope[head_dim=128,kv_heads=4,q_heads=32,qk_norm=1]": 48,
        "router[experts=128,renormalize=1,top_k=8]": 48,
        f"moe_gate_up{experts}": 48,
        f"moe_down{experts}": 48,
        f"attention_decode[{attention},window=0]": 48,
        f"attention_decode_fused[{attention},qk_norm=1,window=0]": 48,
    }
    assert _steps(items, 64) == {**_steps(items, 1), f"moe_grouped{experts}": 48}
    assert _steps(items, 8192) == {
        "rms_norm[hidden=2048]": 1,
        "add_rms_norm[hidden=2048]": 96,
        "qk_norm_rope[head_dim=128,kv_heads=4,q_heads=32,qk_norm=1]": 48,
        "router[experts=128,renormalize=1,top_k=8]": 48,
        f"moe_grouped{experts}": 48,
        "attention_prefill[head_dim=128,kv_heads=4,q_heads=32,window=0]": 48,
    }
    assert {item.problem.batch for item in items} == {*DECODE_BATCH_SIZES, *PREFILL_LENGTHS}


def test_qwen3_235b_shapes() -> None:
    steps = _steps(problems(load_model("qwen/qwen3-235b-a22b")), 16)
    assert steps["linear_qkv[bias=0,k=4096,n_kv=512,n_q=8192]"] == 94
    assert steps["linear[bias=0,k=8192,n=4096,residual=1]"] == 94
    assert steps["moe_gate_up[experts=128,hidden=4096,inter=1536,top_k=8]"] == 94


def test_dense_models_have_dense_kernels_only() -> None:
    qwen3 = _steps(problems(load_model("Qwen3-32B")), 32)
    assert qwen3["linear_qkv[bias=0,k=5120,n_kv=1024,n_q=8192]"] == 64
    assert qwen3["linear[bias=0,k=8192,n=5120,residual=1]"] == 64
    assert qwen3["linear_silu_mul[k=5120,n=25600]"] == 64
    assert qwen3["linear[bias=0,k=25600,n=5120,residual=1]"] == 64
    assert qwen3["rms_norm[hidden=5120]"] == 129
    assert not [name for name in qwen3 if name.startswith(("moe", "router"))]
    qwq = _steps(problems(load_model("QwQ-32B")), 32)
    assert qwq["linear_qkv[bias=1,k=5120,n_kv=1024,n_q=5120]"] == 64
    assert qwq["linear[bias=0,k=5120,n=152064,residual=0]"] == 1
    assert qwq["linear_silu_mul[k=5120,n=27648]"] == 64
    fused = "attention_decode_fused[context=4096,head_dim=128,kv_heads=8,q_heads=40,qk_norm=0,window=0]"
    assert qwq[fused] == 64
    assert qwq["qk_norm_rope[head_dim=128,kv_heads=8,q_heads=40,qk_norm=0]"] == 64


@pytest.mark.parametrize(("tp", "q_heads", "kv_heads"), [(1, 32, 4), (2, 16, 2), (4, 8, 1), (8, 4, 1)])
def test_tensor_parallel_shards_of_qwen3_30b(tp: int, q_heads: int, kv_heads: int) -> None:
    steps = _steps(problems(load_model("Qwen3-30B-A3B"), tp=tp), 8)
    assert steps[f"linear_qkv[bias=0,k=2048,n_kv={kv_heads * 128},n_q={q_heads * 128}]"] == 48
    # Behind a row-parallel product comes an all-reduce, so only one rank alone can add the residual itself.
    assert steps[f"linear[bias=0,k={q_heads * 128},n=2048,residual={int(tp == 1)}]"] == 48
    assert steps[f"linear[bias=0,k=2048,n={151936 // tp},residual=0]"] == 1
    assert steps[f"moe_down[experts=128,hidden=2048,inter={768 // tp},top_k=8]"] == 48
    assert steps["linear[bias=0,k=2048,n=128,residual=0]"] == 48
    assert steps["router[experts=128,renormalize=1,top_k=8]"] == 48
    assert steps["rms_norm[hidden=2048]"] == (49 if tp == 1 else 1)
    assert f"attention_decode[context=4096,head_dim=128,kv_heads={kv_heads},q_heads={q_heads},window=0]" in steps
    assert steps[f"qk_norm_rope[head_dim=128,kv_heads={kv_heads},q_heads={q_heads},qk_norm=1]"] == 48


def test_the_vocabulary_is_padded_for_a_shard() -> None:
    spec = parse_config({**LLAMA, "vocab_size": 128257}, "odd")
    assert spec.shard(8).vocab == 16033


@pytest.mark.parametrize(
    ("tp", "message"),
    [
        (0, "tensor parallel degree 0 is not a positive number"),
        (-2, "tensor parallel degree -2 is not a positive number"),
        (3, "Qwen3-30B-A3B: query heads 32 cannot be divided among 3 ranks"),
        (64, "Qwen3-30B-A3B: query heads 32 cannot be divided among 64 ranks"),
    ],
)
def test_a_degree_that_does_not_divide(tp: int, message: str) -> None:
    with pytest.raises(ModelError) as raised:
        problems(load_model("Qwen3-30B-A3B"), tp=tp)
    assert str(raised.value) == message


def test_kv_heads_that_neither_divide_nor_repeat() -> None:
    spec = parse_config({**LLAMA, "num_attention_heads": 24, "num_key_value_heads": 6, "head_dim": 64}, "m")
    with pytest.raises(ModelError, match="m: KV heads 6 cannot be divided among 4 ranks"):
        spec.shard(4)


def test_items_are_unique_and_in_tuning_order() -> None:
    items = problems(load_model("Qwen3-30B-A3B"), batch_sizes=[64, 1, 64, 512], prefill_lengths=[512])
    assert max(Counter(item.problem for item in items).values()) == 1
    by_shape: dict[tuple[str, str], list[int]] = {}
    for item in items:
        by_shape.setdefault((item.problem.kernel, item.problem.signature), []).append(item.problem.batch)
    assert all(batches == sorted(batches) for batches in by_shape.values())
    assert len(by_shape) == len({(i.problem.kernel, i.problem.signature) for i in items})
    # A batch that is both a decode batch and a prefill length is one problem, with decode's calls.
    (norm,) = [i for i in items if i.problem.kernel == "rms_norm" and i.problem.batch == 512]
    assert (norm.phase, norm.calls_per_step) == ("decode", 49)
    assert problems(load_model("Qwen3-30B-A3B")) == problems(load_model("Qwen3-30B-A3B"))


def test_kernels_can_be_chosen() -> None:
    items = problems(load_model("Qwen3-30B-A3B"), kernels=["moe_down", "router"], batch_sizes=[1, 2])
    assert [i.problem.kernel for i in items if i.phase == "decode"] == ["router"] * 2 + ["moe_down"] * 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_sizes": [4, -1]}, "batch size -1 is outside 1..1048576"),
        ({"prefill_lengths": [0]}, "prefill length 0 is outside 1..1048576"),
        ({"dtype": "fp8"}, "dtype 'fp8' is not one of bf16, fp16, fp32"),
        ({"context": 0}, "context 0 is outside 1..16777216"),
        ({"kernels": ["moe"]}, "unknown kernel 'moe'; known: rms_norm"),
        (
            {"kernels": ["moe_down"]},
            "Qwen3-32B uses none of moe_down; it uses rms_norm, add_rms_norm, linear",
        ),
    ],
)
def test_a_workload_that_makes_no_sense(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(WorkloadError) as raised:
        problems(load_model("Qwen3-32B"), **arguments)
    assert str(raised.value).startswith(message)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("model", PRESETS, ids=lambda model: model.name)
def test_every_preset_gives_problems_for_every_batch(model: ModelSpec) -> None:
    items = problems(model)
    assert {item.problem.batch for item in items} == {*DECODE_BATCH_SIZES, *PREFILL_LENGTHS}
    assert min(item.calls_per_step for item in items) >= 1
    assert load_model(model.name.upper()) == model


def test_preset_names_are_unique_and_aliases_lead_somewhere() -> None:
    names = [model.name.lower() for model in PRESETS] + [alias.split("/")[1].lower() for alias in ALIASES]
    assert len(names) == len(set(names))
    for alias in ALIASES:
        assert load_model(alias) == load_model(alias.split("/")[1])


def _same_shape(left: ModelSpec, right: ModelSpec) -> bool:
    keep = {"name": "", "source": ""}
    return ModelSpec(**{**vars(left), **keep}) == ModelSpec(**{**vars(right), **keep})


@pytest.mark.parametrize(
    ("config", "preset"),
    [(QWEN3_MOE, "Qwen3-30B-A3B"), (QWQ, "QwQ-32B"), (MIXTRAL, "Mixtral-8x7B"), (LLAMA, "Llama-3.1-8B")],
)
def test_a_config_file_gives_what_the_preset_says(tmp_path: Path, config: dict[str, Any], preset: str) -> None:
    folder = tmp_path / "some-model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert _same_shape(load_model(str(folder)), load_model(preset))
    assert load_model(str(folder / "config.json")).name == "some-model"
    assert _same_shape(parse_config({"model_type": "any", "text_config": config}, "nested"), load_model(preset))


def test_the_dialects() -> None:
    shared = parse_config(
        {
            **QWEN3_MOE,
            "model_type": "qwen2_moe",
            "norm_topk_prob": False,
            "shared_expert_intermediate_size": 5632,
            "mlp_only_layers": [0, 1],
            "decoder_sparse_step": 2,
        },
        "qwen2-moe",
    )
    assert (shared.qkv_bias, shared.renormalize, shared.qk_norm) == (True, False, "none")
    assert (shared.dense_layers, shared.moe_layers, shared.inter) == (25, 23, 6144)
    steps = _steps(problems(shared), 4)
    assert steps["linear_silu_mul[k=2048,n=5632]"] == 23
    assert steps["linear[bias=0,k=2048,n=1,residual=0]"] == 23
    assert steps["linear_silu_mul[k=2048,n=6144]"] == 25
    olmoe = {**MIXTRAL, "model_type": "olmoe", "num_experts": 64, "num_experts_per_tok": 8}
    spec = parse_config(olmoe, "olmoe")
    assert (spec.moe_inter, spec.renormalize, spec.qk_norm) == (14336, False, "row")
    kernels = {item.problem.kernel for item in problems(spec)}
    assert "attention_decode" in kernels and "attention_decode_fused" not in kernels
    # A norm over whole rows comes before it, so that RoPE is all that is left.
    assert "qk_norm_rope[head_dim=128,kv_heads=8,q_heads=32,qk_norm=0]" in _steps(problems(spec), 1)
    assert parse_config({**LLAMA, "head_dim": None}, "x").head_dim == 128
    assert parse_config({k: v for k, v in LLAMA.items() if k != "num_key_value_heads"}, "x").kv_heads == 32
    biased = parse_config({**LLAMA, "attention_bias": True}, "biased")
    assert "linear[bias=1,k=4096,n=4096,residual=1]" in _steps(problems(biased), 1)


def test_sliding_windows() -> None:
    mistral = parse_config({**LLAMA, "model_type": "mistral", "sliding_window": 4096}, "m")
    assert (mistral.window, mistral.window_layers) == (4096, 32)
    mixed = parse_config({**QWQ, "use_sliding_window": True, "max_window_layers": 60}, "mixed")
    assert (mixed.window, mixed.window_layers) == (32768, 4)
    steps = _steps(problems(mixed), 1)
    plain = "attention_decode[context=4096,head_dim=128,kv_heads=8,q_heads=40"
    assert (steps[f"{plain},window=0]"], steps[f"{plain},window=32768]"]) == (60, 4)
    listed = {**QWQ, "use_sliding_window": True, "layer_types": ["sliding_attention", "full_attention"] * 32}
    assert parse_config(listed, "listed").window_layers == 32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "deepseek_v3"}, "m: model_type 'deepseek_v3' is not one of llama, mistral, "),
        ({"model_type": 7}, "m: model_type 7 is not one of llama"),
        ({"hidden_size": -1}, "m: hidden_size -1 is outside 1..131072"),
        ({"hidden_size": 0}, "m: hidden_size 0 is outside 1..131072"),
        ({"vocab_size": 10**12}, "m: vocab_size 1000000000000 is outside 1..4194304"),
        ({"vocab_size": 10**9000}, "m: vocab_size a huge number is outside 1..4194304"),
        ({"hidden_size": "2048"}, "m: hidden_size is '2048', expected an integer 1..131072"),
        ({"hidden_size": 2048.0}, "m: hidden_size is 2048.0, expected an integer"),
        ({"hidden_size": True}, "m: hidden_size is True, expected an integer"),
        ({"num_experts_per_tok": 129}, "m: 129 of 128 experts of width 768 make no layer"),
        ({"num_experts": 0}, "m: 8 of 0 experts of width 768 make no layer"),
        ({"num_key_value_heads": 5}, "m: 32 query heads are no multiple of 5 KV heads"),
        ({"norm_topk_prob": 1}, "m: norm_topk_prob is 1, expected true or false"),
        ({"mlp_only_layers": "all"}, "m: mlp_only_layers is 'all', expected a list of layer numbers"),
        ({"hidden_act": "gelu"}, "m: hidden_act 'gelu' is not silu, the kernels compute SwiGLU"),
        ({"mlp_bias": True}, "m: mlp_bias is true, the kernels compute a SwiGLU without bias"),
        (
            {"head_dim": None, "num_attention_heads": 36},
            "m: hidden_size 2048 is no multiple of 36 heads and ",
        ),
        (
            {"hidden_size": None, "num_experts": None, "vocab_size": None},
            "m: missing hidden_size, vocab_size, num_experts",
        ),
    ],
)
def test_a_config_that_makes_no_sense(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError) as raised:
        parse_config({**QWEN3_MOE, **change}, "m")
    assert str(raised.value).startswith(message)


def test_either_name_of_the_number_of_experts() -> None:
    # transformers 5 saves Qwen3-MoE with num_local_experts, transformers 4 with num_experts.
    renamed = {"num_local_experts" if key == "num_experts" else key: value for key, value in QWEN3_MOE.items()}
    assert "num_local_experts" in renamed
    assert parse_config(renamed, "x") == parse_config(QWEN3_MOE, "x")


def test_an_empty_config_names_all_that_is_missing() -> None:
    with pytest.raises(ModelError) as raised:
        parse_config({}, "empty")
    assert str(raised.value) == (
        "empty: missing model_type, num_hidden_layers, hidden_size, num_attention_heads, vocab_size, intermediate_size"
    )


@pytest.mark.parametrize(("config", "kind"), [([], "array"), ("x", "string"), (None, "null"), (3, "number")])
def test_a_config_that_is_no_object(config: object, kind: str) -> None:
    with pytest.raises(ModelError, match=f"m: the configuration is a JSON {kind}, expected an object"):
        parse_config(config, "m")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is not JSON: "),
        (b"", "is not JSON: "),
        (b"\xff\xfe\x00", "is not JSON: "),
        (b'{"a": ' + b"9" * 5000 + b"}", "is not JSON: "),
        (b"[" * 200_000, "is nested too deeply for a config.json"),
        (b" " * (MAX_CONFIG_BYTES + 1), f"is larger than {MAX_CONFIG_BYTES} bytes"),
        (b"[1]", "the configuration is a JSON array"),
    ],
    ids=["cut", "empty", "binary", "huge number", "deep", "large", "array"],
)
def test_a_file_that_cannot_be_a_config(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ModelError) as raised:
        load_model(str(tmp_path))
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_path_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nothing.json", "./no-such-folder/", "~no_such_user/config.json"):
        with pytest.raises(ModelError, match=r"no file '.*'; expected a config.json, or a folder that holds one"):
            load_model(str(path))


@pytest.mark.parametrize("name", ["Qwen3-31B", "", "x/y", "a\0b", "line\nbreak", "n" * 5000])
def test_an_unknown_model_names_the_nearest(name: str) -> None:
    with pytest.raises(ModelError) as raised:
        load_model(name)
    assert str(raised.value).startswith("unknown model ")
    assert "nearest presets: Qwen3-" in str(raised.value)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 300


def test_a_hub_id_is_asked_of_the_resolver_and_a_preset_is_not() -> None:
    asked = []

    def resolve(hub_id: str) -> dict[str, Any]:
        asked.append(hub_id)
        return QWQ

    spec = load_model("someone/QwQ-clone", resolve)
    assert (spec.name, spec.source) == ("someone/QwQ-clone", "hub someone/QwQ-clone")
    assert _same_shape(spec, load_model("Qwen/QwQ-32B", resolve))
    assert asked == ["someone/QwQ-clone"]


_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from([1, 2, 64, 128]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=4,
)
_keys = st.sampled_from([*QWEN3_MOE, *MIXTRAL, "text_config", "layer_types", "shared_expert_intermediate_size"])
_families = st.sampled_from(["qwen3_moe", "qwen2_moe", "mixtral", "olmoe", "qwen2", "llama", "mistral"])


@given(change=st.dictionaries(_keys, _values, max_size=4), family=_families)
def test_any_config_gives_a_model_or_one_line(change: dict[str, Any], family: str) -> None:
    config = {**MIXTRAL, **QWEN3_MOE, "shared_expert_intermediate_size": 64, "model_type": family, **change}
    message = "m: "
    try:
        spec = parse_config(config, "m")
        assert min(item.calls_per_step for item in problems(spec, batch_sizes=[1], prefill_lengths=[])) >= 1
    except ModelError as error:
        message = str(error)
    assert message.startswith("m: ")
    assert len(message.splitlines()) == 1 and len(message) < 300


@given(config=_values)
def test_any_json_gives_one_line(config: object) -> None:
    with pytest.raises(ModelError) as raised:
        parse_config(config, "m")
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize(("model", "tp"), [("Qwen3-30B-A3B", 1), ("Qwen2-57B-A14B", 4), ("Llama-3.2-1B", 8)])
@pytest.mark.parametrize("device", ["gfx942", "sm_90"])
def test_every_problem_has_a_legal_config(model: str, tp: int, device: str) -> None:
    """Shards and gates make sizes that no one would choose: a projection to one column, a single KV head."""
    for item in problems(load_model(model), batch_sizes=[1, 64], prefill_lengths=[512], tp=tp):
        space = space_of(item.problem.kernel)
        config = space.default_config(item.problem, resolve(device))
        assert space.faults(config, item.problem, resolve(device)) == []
