"""Every device has constants with a basis, and none promises more than is published."""

import dataclasses

import pytest

from paiton.search_spaces.arch import Device, known_devices, resolve
from paiton.search_spaces.model.constants import ModelConstants, constants_of, flop_per_clk, hbm_gbps

FIELDS = {field.name for field in dataclasses.fields(ModelConstants)} - {"basis"}


@pytest.mark.parametrize("device", known_devices(), ids=str)
def test_every_constant_has_a_value_a_basis_and_a_source(device: Device) -> None:
    constants = constants_of(device)
    assert set(constants.basis) == FIELDS
    for name, constant in constants.basis.items():
        assert getattr(constants, name) == constant.value > 0
        assert constant.basis in ("S", "D", "A")
        assert len(constant.source) > 4


@pytest.mark.parametrize("device", known_devices(), ids=str)
def test_achievable_is_below_published_and_caches_are_faster_and_nearer(device: Device) -> None:
    constants = constants_of(device)
    assert 0.7 < constants.hbm_fraction < 0.95
    assert constants.clk_ghz <= device.clock_ghz
    assert hbm_gbps(device, constants) < constants.last_level_gbps <= constants.l2_gbps
    assert constants.hbm_ns > constants.last_level_ns >= constants.l2_ns
    assert max(constants.mma_efficiency, constants.small_mma_efficiency) < 1


@pytest.mark.parametrize(
    ("device", "dtype", "flops"),
    [("MI300X", "bf16", 2048), ("MI300X", "fp8", 4096), ("MI355X", "bf16", 4096), ("MI250X", "bf16", 1024),
     ("A100", "bf16", 2048), ("H100", "fp16", 4096), ("H200", "fp8", 8192), ("B200", "bf16", 8192),
     ("MI300X", "fp32", 256)],
)  # fmt: skip
def test_matrix_rate_per_unit_and_clock(device: str, dtype: str, flops: float) -> None:
    assert flop_per_clk(resolve(device), dtype) == pytest.approx(flops, rel=0.01)


def test_the_prototypes_bandwidths_are_kept() -> None:
    expected = {"MI300X": 4200, "MI325X": 4800, "H100": 2900, "H200": 4200, "B200": 6800}
    for name, gbps in expected.items():
        assert hbm_gbps(resolve(name), constants_of(resolve(name))) == pytest.approx(gbps)
