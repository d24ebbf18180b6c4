"""The catalogue holds together, and the parser takes what tools print."""

import dataclasses
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paiton.search_spaces.arch import (
    Arch,
    Device,
    UnknownArch,
    UnknownDevice,
    arch_named,
    device_named,
    known_archs,
    known_devices,
    parse_features,
    resolve,
)
from paiton.search_spaces.devices import DEFAULT_DEVICE

ROCM_AGENTS = "gfx000\ngfx942\ngfx942\n"

SPELLINGS = [
    ("gfx942", "MI300X"),
    ("gfx942:sramecc+:xnack-", "MI300X"),
    ("GFX942", "MI300X"),
    ("amdgcn-amd-amdhsa--gfx942:sramecc+:xnack-", "MI300X"),
    (ROCM_AGENTS, "MI300X"),
    ("gfx942\ngfx1036\n", "MI300X"),
    ("gfx950\n", "MI355X"),
    (" gfx90a:sramecc+:xnack- ", "MI250X"),
    ("sm90", "H100"),
    ("sm_90", "H100"),
    ("sm_90a", "H100"),
    ("SM-90", "H100"),
    ("compute_90", "H100"),
    ("9.0", "H100"),
    ("(9, 0)", "H100"),
    ("90", "H100"),
    ("8.0", "A100"),
    ("10.0", "B200"),
    ("sm_100a", "B200"),
    ("100", "B200"),
    ("NVIDIA H200", "H200"),
    ("NVIDIA H100 80GB HBM3", "H100"),
    ("NVIDIA A100-SXM4-80GB", "A100"),
    ("NVIDIA B200", "B200"),
    ("NVIDIA H200\nNVIDIA H200\n", "H200"),
    ("AMD Instinct MI300X OAM", "MI300X"),
    ("AMD Instinct MI325X", "MI325X"),
    ("AMD Instinct MI250X / MI250", "MI250X"),
    ("MI300A", "MI300A"),
    ("mi350x", "MI350X"),
    ("h200", "H200"),
]


@pytest.mark.parametrize(("text", "device"), SPELLINGS)
def test_resolves_what_tools_print(text: str, device: str) -> None:
    assert resolve(text).name == device


@pytest.mark.parametrize(
    ("text", "nearest"),
    [("gfx940", "gfx942"), ("gfx943", "gfx942"), ("gfx908", "gfx90a"), ("sm_89", "sm_90"), ("sm_86", "sm_90"),
     ("7.5", "sm_80"), ("sm_120", "sm_100"), ("gfx1100", "gfx950"), ("gfx", "gfx950")],
)  # fmt: skip
def test_unknown_arch_names_value_nearest_and_known(text: str, nearest: str) -> None:
    with pytest.raises(UnknownArch) as raised:
        resolve(text)
    message = str(raised.value)
    assert repr(text) in message
    assert "\n" not in message
    assert f"nearest known is {nearest}" in message
    assert all(arch.name in message for arch in known_archs())


@pytest.mark.parametrize(
    ("text", "nearest"),
    [("MI300", "MI300X"), ("AMD Instinct MI308X", "MI300X"), ("NVIDIA H20", "H200"),
     ("NVIDIA GeForce RTX 4090", "H100"),     ("NVIDIA GB200", "B200"), ("NVIDIA A800-SXM4-80GB", "A100")],
)  # fmt: skip
def test_unknown_device_names_a_known_one(text: str, nearest: str) -> None:
    with pytest.raises(UnknownDevice) as raised:
        resolve(text)
    assert repr(text) in str(raised.value)
    assert "known devices: MI300X" in str(raised.value)
    if "RTX" not in text:  # nothing in the catalogue is like a gaming card
        assert f"nearest known is {nearest}" in str(raised.value)


@pytest.mark.parametrize(
    "text", ["NVIDIA H100 PCIe", "NVIDIA H100 NVL", "NVIDIA A100-PCIE-40GB", "NVIDIA A100-SXM4-40GB"]
)
def test_a_variant_with_other_figures_is_not_taken_for_the_catalogue_one(text: str) -> None:
    with pytest.raises(UnknownDevice, match="other figures"):
        resolve(text)


def test_different_gpus_are_an_error() -> None:
    with pytest.raises(UnknownArch, match=r"different GPUs \(MI300X, MI250X\)"):
        resolve("gfx942\ngfx90a\n")


@pytest.mark.parametrize("text", ["", "\n", "gfx000\n"])
def test_no_gpu_at_all(text: str) -> None:
    with pytest.raises(UnknownArch, match="names no GPU"):
        resolve(text)


def test_device_chooses_among_the_products_of_the_arch() -> None:
    assert resolve("gfx942", device="MI325X").name == "MI325X"
    assert resolve("gfx942:xnack-", device="mi300a").name == "MI300A"
    assert resolve("sm_90", device="NVIDIA H200").name == "H200"
    with pytest.raises(UnknownDevice, match="device H200 is sm_90, not gfx942; gfx942 devices: MI300X, MI300A, MI325X"):
        resolve("gfx942", device="H200")
    with pytest.raises(UnknownDevice, match="nearest known is MI325X"):
        resolve("gfx942", device="MI326X")


def test_features_are_read_from_the_target_id() -> None:
    assert parse_features("gfx942:sramecc+:xnack-\n") == {"sramecc": True, "xnack": False}
    assert parse_features("gfx000\ngfx90a:xnack+") == {"xnack": True}
    assert parse_features("gfx942") == parse_features("sm_90") == {}


@given(st.one_of(st.text(max_size=200), st.from_regex(r"(gfx|sm_?|NVIDIA |MI|compute_)[0-9a-z. :+-]{0,12}\n?")))
def test_any_text_resolves_or_raises_one_line(text: str) -> None:
    try:
        device = resolve(text)
    except (UnknownArch, UnknownDevice) as error:
        message = str(error)
        assert message
        assert len(message.splitlines()) == 1
        assert message.isprintable()
    else:
        assert device in known_devices()


def _figures(item: Arch | Device) -> set[str]:
    not_figures = {"name", "arch", "sources", "vendor", "triton_backend"}
    return {field.name for field in dataclasses.fields(item)} - not_figures


@pytest.mark.parametrize("item", [*known_archs(), *known_devices()], ids=str)
def test_every_figure_has_a_source(item: Arch | Device) -> None:
    assert set(item.sources) == _figures(item)
    assert all(len(source) > 10 for source in item.sources.values())


@pytest.mark.parametrize("device", known_devices(), ids=str)
def test_figures_agree_with_each_other(device: Device) -> None:
    flop_per_clk = device.peak_tflops["bf16"] * 1e3 / (device.compute_units * device.clock_ghz)
    assert flop_per_clk == pytest.approx(2 ** round(flop_per_clk).bit_length() / 2, rel=0.01)  # a power of two
    assert device.peak_tflops["fp16"] == device.peak_tflops["bf16"] > device.peak_tflops["fp32"]
    assert ("fp8" in device.peak_tflops) == (device.arch.fp8_dtype is not None)
    assert device.compute_units % device.xcds == 0
    assert device.l2_bytes % device.xcds == 0
    assert device.last_level_bytes >= device.l2_bytes
    assert resolve(device.name) is device
    assert resolve(device.arch.name, device.name) is device


def test_catalogue_keys_are_unique_and_values_travel_between_processes() -> None:
    names = [item.name.lower() for item in (*known_archs(), *known_devices())]
    assert len(set(names)) == len(names)
    assert set(DEFAULT_DEVICE) == {arch.name for arch in known_archs()}
    for name, default in DEFAULT_DEVICE.items():
        assert device_named(default).arch is arch_named(name)
    for device in known_devices():
        assert pickle.loads(pickle.dumps(device)) == device
        assert len({device, pickle.loads(pickle.dumps(device))}) == 1


def test_limits_the_compiler_does_not_check() -> None:
    limits = {arch.name: arch.shared_limit_bytes for arch in known_archs()}
    assert limits == {
        "gfx942": 65536, "gfx90a": 65536, "gfx950": 163840, "sm_80": 166912, "sm_90": 232448,
        "sm_100": 232448,
    }  # fmt: skip
    assert {arch.name for arch in known_archs() if arch.allows_kpack} == {"gfx942", "gfx90a"}
    assert arch_named("sm_90").triton_target == 90
    assert arch_named("gfx942").triton_target == "gfx942"
