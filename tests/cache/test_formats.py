"""Other forms of the answers: what goes out comes back the same, and what is not in the format is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paiton.cache.errors import RowRefused
from paiton.cache.formats import jsonl
from paiton.cache.formats.grouped_moe import export_grouped, known_device_names, seeds_of
from paiton.cache.formats.peer_devices import PEER_DEVICE, arch_of_peer_device
from paiton.cache.formats.peer_file import (
    FormatRefused,
    Ladder,
    Peer,
    PeerFile,
    PeerName,
    format_body,
    format_name,
    parse_body,
    parse_name,
)
from paiton.cache.formats.peer_rows import files_of, path_of, read_file, read_folder, rows_of, written
from paiton.cache.lookup import Lookup
from paiton.cache.rows import Label, TunedRow
from paiton.cache.store import ConfigStore
from paiton.search_spaces.arch import device_named, known_devices
from paiton.search_spaces.config import Config
from paiton.search_spaces.moe_grouped import MOE_GROUPED

ROOT = Path(__file__).resolve().parents[2]
PEER_CONFIGS = Path(os.environ.get("PAITON_PEER_CONFIGS", ROOT.parent / "shared" / "reference" / "peer_configs"))
needs_peer_configs = pytest.mark.skipif(
    not PEER_CONFIGS.is_dir(), reason=f"no folder of published configs at {PEER_CONFIGS}: set PAITON_PEER_CONFIGS"
)
TILE = {"BLOCK_SIZE_M": 16, "BLOCK_SIZE_N": 64, "BLOCK_SIZE_K": 128, "GROUP_SIZE_M": 1, "num_warps": 4, "num_stages": 3}


def nearest(ladder: Ladder, tokens: int) -> Any:
    """The rule of both loaders: least |M - tokens|, the first in the file among equals."""
    best, found = None, None
    for key, config in ladder:
        if best is None or abs(key - tokens) < best:
            best, found = abs(key - tokens), config
    return found


# Lines of JSON.


def test_lines_give_the_answers_back_sorted(build: Any) -> None:
    rows = [build.measured(build.cell(batch=b), us_p10=0.1 + 0.2, ts_ms=b) for b in (3, 1, 2)]
    text = jsonl.dumps(rows)
    assert text == jsonl.dumps(reversed(rows))
    assert sorted(jsonl.loads(text), key=lambda row: row.cell.batch) == sorted(rows, key=lambda row: row.cell.batch)
    assert jsonl.dumps(jsonl.loads(text + "\n\n")) == text
    with pytest.raises(RowRefused, match=r"line 2: line '\{' is not JSON"):
        jsonl.loads(text.split("\n")[0] + "\n{\n")


# Names.

devices = st.from_regex(r"[A-Za-z][A-Za-z0-9_().-]{0,30}", fullmatch=True).filter(
    lambda text: not text.endswith(("_down", ".json"))
)
shapes = st.one_of(st.none(), st.tuples(st.integers(1, 512), st.integers(1, 512)))
dtypes = st.sampled_from(["", "fp8_w8a8", "int4_w4a16", "float32"])
common = {"experts": st.integers(1, 512), "inter": st.integers(1, 20000), "device": devices, "dtype": dtypes}


@given(st.builds(PeerName, **common, block_shape=shapes, backend=st.sampled_from(["", "flydsl"])))
def test_vllm_names_there_and_back(name: PeerName) -> None:
    text = format_name(Peer.VLLM, name)
    assert " " not in text and parse_name(Peer.VLLM, text) == name


@given(st.builds(PeerName, **common, block_shape=shapes, per_channel=st.booleans(), down=st.booleans()))
def test_sglang_names_there_and_back(name: PeerName) -> None:
    assert parse_name(Peer.SGLANG, format_name(Peer.SGLANG, name)) == name


@pytest.mark.parametrize(
    ("peer", "text"),
    [
        (Peer.VLLM, "E=8,N=64,device_name=NVIDIA_H200,block_shape=[128, 128].json"),
        (Peer.SGLANG, "E=8,N=64,device_name=NVIDIA_H200,block_shape=[128,128].json"),
        (Peer.VLLM, "E=08,N=64,device_name=NVIDIA_H200.json"),
        (Peer.VLLM, "N=64,E=8,device_name=NVIDIA_H200.json"),
        (Peer.VLLM, "E=8,N=64,device_name=NVIDIA,H200.json"),
        (Peer.VLLM, "E=8,N=64,device_name=a/b.json"),
        (Peer.VLLM, "E=8,N=64,device_name=NVIDIA_H200.yaml"),
        (Peer.VLLM, "E=8,N=64,device_name=NVIDIA_H200,dtype=fp8_w8a8,per_channel_quant=True.json"),
    ],
)
def test_other_names_are_refused(peer: Peer, text: str) -> None:
    with pytest.raises(FormatRefused, match="is no file name of"):
        parse_name(peer, text)


# Bodies.

tiles = st.sampled_from([16, 32, 64, 128])
configs = st.fixed_dictionaries(
    {"BLOCK_SIZE_M": tiles, "BLOCK_SIZE_N": tiles, "BLOCK_SIZE_K": tiles, "GROUP_SIZE_M": tiles},
    optional={
        "num_warps": st.sampled_from([1, 4]), "num_stages": st.integers(1, 5), "waves_per_eu": st.integers(0, 4),
        "kpack": st.integers(1, 2), "grf_mode": st.just("256"), "USE_TMA": st.booleans(), "SPLIT_K": st.just(1),
    },
)  # fmt: skip
ladders = st.dictionaries(st.integers(1, 4096), configs, min_size=1, max_size=4).map(lambda each: tuple(each.items()))


@given(st.sampled_from(Peer), ladders, st.sampled_from(["3.6.0", "3.7.1"]), st.booleans())
def test_a_file_becomes_rows_and_a_file_again(peer: Peer, ladder: Ladder, triton: str, down: bool) -> None:
    name = PeerName(experts=8, inter=64, device="NVIDIA_H200", block_shape=(128, 64), down=down and peer is Peer.SGLANG)
    file = PeerFile(peer=peer, name=name, ladder=ladder, triton=triton)
    rows = rows_of(file, version="1")
    assert files_of(peer, reversed(rows)) == [file]
    assert files_of(Peer.SGLANG if peer is Peer.VLLM else Peer.VLLM, rows) == []
    again, said = parse_body(peer, format_body(file))
    assert dict(again) == dict(ladder) and said == (triton if peer is Peer.VLLM else "")
    assert [tokens for tokens, _ in again] == sorted(tokens for tokens, _ in ladder)


def test_an_imported_row_says_what_it_is_and_is_not_ours() -> None:
    (row,) = rows_of(
        PeerFile(
            peer=Peer.VLLM, name=PeerName(experts=128, inter=768, device="NVIDIA_H20-3e"), ladder=((64, TILE),),
            triton="3.6.0",
        ),
        version="0.33.0",
    )  # fmt: skip
    assert (row.label, row.cell.kernel, row.cell.arch, row.cell.dtype) == (
        Label.PRIOR,
        "vllm.fused_moe",
        "sm_90",
        "16-bit",
    )
    assert (row.source.name, row.source.version, row.source.licence) == ("vLLM", "0.33.0", "Apache-2.0")
    assert row.us_median is None and "top-k" in row.env.policy and row.env.triton == "3.6.0"


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ('{"0": {}}', "key '0'"),
        ('{"01": {}}', "key '01'"),
        ('{"1": 3}', "expected a config"),
        ('{"1": {"BLOCK_SIZE_M": 16}}', "BLOCK_SIZE_N, BLOCK_SIZE_K, GROUP_SIZE_M missing"),
        (json.dumps({"1": {**TILE, "evil": 1}}), "unknown field 'evil'"),
        (json.dumps({"1": {**TILE, "num_warps": True}}), "num_warps='True' is no int"),
        (json.dumps({"1": {**TILE, "USE_TMA": 1}}), "USE_TMA='1' is no bool"),
        (json.dumps({"1": {**TILE, "num_warps": 0}}), "num_warps=0 is outside 1..65536"),
        (json.dumps({"1": {**TILE, "num_warps": 10**30}}), "outside"),
        (json.dumps({"1": {**TILE, "grf_mode": "a b"}}), "no word"),
        ('{"1": {}, "1": {}}', "names a field twice"),
        ('{"triton_version": 3}', "triton_version=3"),
        ("[" * 100_000, "not JSON"),
        ('{"1": NaN', "not JSON"),
        (" " * (1 << 21), "are accepted"),
    ],
)
def test_other_bodies_are_refused(body: str, why: str) -> None:
    with pytest.raises(FormatRefused, match=why.replace("(", r"\(")):
        parse_body(Peer.VLLM, body)


def test_a_version_in_a_file_for_sglang_is_refused() -> None:
    with pytest.raises(FormatRefused, match=r"calls int\(\) on every key"):
        parse_body(Peer.SGLANG, '{"triton_version": "3.6.0"}')


def test_a_folder_is_read_but_for_what_is_not_a_table_of_the_triton_kernel(tmp_path: Path) -> None:
    good = "E=8,N=64,device_name=NVIDIA_H200"
    for name, text in {
        f"{good}.json": json.dumps({"1": TILE}),
        f"{good},dtype=int4_w4a16,backend=flydsl.json": "{}",
        "notes.json": "{}",
        "E=8,N=64,device_name=.json": json.dumps({"1": TILE}),
    }.items():
        (tmp_path / name).write_text(text)
    found = read_folder(Peer.VLLM, tmp_path)
    assert len(found.rows) == 1
    reasons = {path.name: why for path, why in found.refused}
    assert reasons["E=8,N=64,device_name=.json"] == "the device name is empty: no loader looks for it"
    assert "another kernel" in reasons[f"{good},dtype=int4_w4a16,backend=flydsl.json"]
    assert "no file name of vLLM" in reasons["notes.json"]
    folder = tmp_path / "triton_3_6_0+rocm"
    folder.mkdir()
    (folder / f"{good}.json").write_text("{}")
    with pytest.raises(FormatRefused, match=r"triton_3_6_0\+rocm"):
        read_file(Peer.SGLANG, folder / f"{good}.json")


def test_importing_twice_changes_nothing(store: ConfigStore) -> None:
    file = PeerFile(peer=Peer.VLLM, name=PeerName(experts=8, inter=64, device="NVIDIA_H200"), ladder=((1, TILE),))
    assert [store.put_all_tuned(rows_of(file)) for _ in range(2)] == [1, 0]


@needs_peer_configs
@pytest.mark.parametrize("peer", Peer)
def test_published_files_come_back_equal_in_name_and_meaning(peer: Peer, tmp_path: Path) -> None:
    folder = PEER_CONFIGS / peer.value
    found = read_folder(peer, folder, version="of the reference")
    assert found.refused == () and len(found.rows) > 900
    with ConfigStore.open(tmp_path / "peers.db") as store:
        store.put_all_tuned(found.rows)
        out = {each.path: each.text for each in written(files_of(peer, store.tuned()))}
    originals = {path.relative_to(folder): path for path in folder.rglob("*.json")}
    assert {path if peer is Peer.VLLM else path.relative_to("configs") for path in out} == set(originals)
    for path, original in originals.items():
        text = out[path if peer is Peer.VLLM else Path("configs") / path]
        ours, theirs = json.loads(text), json.loads(original.read_text())
        assert ours == theirs
        # The M keys keep their order, which decides ties; all published here are ascending.
        assert [key for key in ours if key != "triton_version"] == [key for key in theirs if key != "triton_version"]


@pytest.mark.parametrize(
    ("name", "arch"),
    [
        ("NVIDIA_H20-3e", "sm_90"), ("NVIDIA_H200_NVL", "sm_90"), ("NVIDIA_GB200", "sm_100"), ("NVIDIA_GB10", "sm_121"),
        ("AMD_Instinct_MI308X", "gfx942"), ("AMD_Instinct_MI355_OAM", "gfx950"), ("NVIDIA_A800-SXM4-80GB", "sm_80"),
        ("AMD_Instinct_MI325_OAM", "gfx942"), ("NVIDIA_RTX_6000_Ada_Generation", "sm_89"), ("NVIDIA_L40S", "sm_89"),
        ("NVIDIA_RTX_PRO_6000_Blackwell_Workstation_Edition", "sm_120"), ("Intel(R)_Arc(TM)_Pro_B70", "unknown"),
    ],
)  # fmt: skip
def test_arch_of_a_peers_device(name: str, arch: str) -> None:
    assert arch_of_peer_device(name) == arch


def test_every_device_of_the_catalogue_has_a_name_with_its_arch() -> None:
    assert {name: arch_of_peer_device(PEER_DEVICE[name]) for name in PEER_DEVICE} == {
        device.name: device.arch.name for device in known_devices()
    }


# Our grouped kernel.


def grouped_rows(build: Any, device: str, batches: tuple[int, ...], **values: Any) -> list[TunedRow]:
    """An answer for each batch: the legal config that is farthest from the one before."""
    target = device_named(device)
    rows = []
    for number, batch in enumerate(batches):
        problem = MOE_GROUPED.problem(dtype="bf16", batch=batch, experts=16, top_k=2, hidden=512, inter=256)
        legal = list(MOE_GROUPED.enumerate(problem, target))
        config = legal[(number * 7919) % len(legal)]
        cell = build.cell(
            arch=target.arch.name, device=device, kernel="moe_grouped", batch=batch, signature=problem.signature
        )
        rows.append(build.estimated(cell, config_json=config.json(), env=build.env(triton="3.7.1+git1"), **values))
    return rows


@pytest.mark.parametrize("device", ["MI300X", "MI355X", "H200"])
def test_the_loaders_rule_picks_from_our_export_what_our_lookup_gives(
    path: Path, tmp_path: Path, build: Any, device: str
) -> None:
    rows = grouped_rows(build, device, (1, 2, 4, 8, 24, 96, 128, 512))
    rows[3] = build.measured(rows[3].cell, config_json=rows[3].config_json)  # wins a tie with its upper neighbour
    with ConfigStore.open(path) as store:
        store.put_all_tuned(rows)
    export = export_grouped(Peer.VLLM, rows)
    (file,) = export.files
    out = tmp_path / path_of(file)
    out.write_text(written(export.files)[0].text)
    assert out.name == f"E=16,N=256,device_name={PEER_DEVICE[device]}.json"
    ladder, _ = parse_body(Peer.VLLM, out.read_text())
    assert [tokens for tokens, _ in ladder] == sorted(tokens for tokens, _ in ladder)
    with Lookup.open(path) as lookup:
        for tokens in range(1, 513):
            answer = lookup.find(build.cell(**{**_fields(rows[0]), "batch": tokens}))
            assert answer.config_json is not None
            ours = Config.from_json(answer.config_json)
            theirs = nearest(ladder, tokens)
            assert (theirs["BLOCK_SIZE_M"], theirs["BLOCK_SIZE_N"], theirs["BLOCK_SIZE_K"], theirs["GROUP_SIZE_M"]) == (
                ours["BLOCK_M"], ours["BLOCK_N"], ours["BLOCK_K"], ours["GROUP_M"],
            ), tokens  # fmt: skip
            knobs = set(theirs) - {"BLOCK_SIZE_M", "BLOCK_SIZE_N", "BLOCK_SIZE_K", "GROUP_SIZE_M"}
            assert {name: theirs[name] for name in knobs} == {name: ours[name] for name in knobs}
            assert knobs == set(ours) - {"BLOCK_M", "BLOCK_N", "BLOCK_K", "GROUP_M", "XCD_REMAP", "maxnreg"}
    assert ("kpack" in ladder[0][1]) is (device == "MI300X")


def _fields(row: TunedRow) -> dict[str, Any]:
    return {name: getattr(row.cell, name) for name in ("arch", "device", "kernel", "kernel_digest", "signature")}


def test_a_default_that_won_is_written_out(build: Any) -> None:
    (row,) = grouped_rows(build, "MI300X", (64,))
    problem = MOE_GROUPED.problem_from(row.cell.signature, "bf16", 64)
    default = MOE_GROUPED.default_config(problem, device_named("MI300X"))
    export = export_grouped(Peer.VLLM, [build.estimated(row.cell, config_json=None)])
    assert dict(export.files[0].ladder)[64]["BLOCK_SIZE_N"] == default["BLOCK_N"]
    assert any("the default won" in note for note in export.notes)


def test_sglang_gets_a_folder_by_triton_version_and_no_version_in_the_file(build: Any) -> None:
    (each,) = written(export_grouped(Peer.SGLANG, grouped_rows(build, "H200", (8, 16))).files)
    assert each.path == Path("configs/triton_3_7_1/E=16,N=256,device_name=NVIDIA_H200.json")
    assert all(key.isdecimal() for key in json.loads(each.text))
    (vllm,) = written(export_grouped(Peer.VLLM, grouped_rows(build, "H200", (8, 16))).files)
    assert next(iter(json.loads(vllm.text).items())) == ("triton_version", "3.7.1+git1")
    assert not any("SPLIT_K" in str(config) or "USE_TMA" in str(config) for config in json.loads(each.text).values())


def test_what_the_name_cannot_say_is_left_out_with_a_note(build: Any) -> None:
    rows = grouped_rows(build, "MI355X", (8, 16))
    deeper = [
        build.measured(build.cell(**{**_fields(row), "batch": row.cell.batch,
                       "signature": "experts=16,hidden=1024,inter=256,top_k=2"}), config_json=row.config_json)
        for row in rows[:1]
    ]  # fmt: skip
    export = export_grouped(Peer.VLLM, [*rows, *deeper, build.estimated()])
    assert len(export.files) == 1 and [tokens for tokens, _ in export.files[0].ladder] == [8]
    text = "\n".join(export.notes)
    assert "experts=16,hidden=512,inter=256,top_k=2 bf16 is left out for" in text
    assert "gate and an up tile per program" in text and "compare the device name" in text
    assert export_grouped(Peer.VLLM, [build.estimated()]).files == ()


def test_device_names_can_be_replaced(build: Any) -> None:
    names = known_device_names({"MI355X": "AMD_Instinct_MI355_OAM"})
    (file,) = export_grouped(Peer.VLLM, grouped_rows(build, "MI355X", (8,)), device_names=names).files
    assert file.name.device == "AMD_Instinct_MI355_OAM"
    for device, name in (("MI355X", "a,b"), ("MI355X", ""), ("MI999", "x")):
        with pytest.raises(FormatRefused):
            known_device_names({device: name})


def test_imported_rows_are_seeds_for_our_search_and_never_served(path: Path, build: Any) -> None:
    (ours,) = grouped_rows(build, "MI300X", (64,))
    name = PeerName(experts=16, inter=256, device="AMD_Instinct_MI300X")
    rows = rows_of(PeerFile(peer=Peer.VLLM, name=name, ladder=((1, {**TILE, "kpack": 2}), (48, TILE))))
    with ConfigStore.open(path) as store:
        store.put_all_tuned(rows)
    with Lookup.open(path) as lookup:
        assert lookup.find(ours.cell).row is None
    seeds = seeds_of(rows, experts=16, inter=256, dtype="bf16", batch=64, limit=8)
    expected = Config.of(BLOCK_M=16, BLOCK_N=64, BLOCK_K=128, GROUP_M=1, num_warps=4, num_stages=3)
    assert seeds == [expected, expected.replace(kpack=2)]
    assert seeds_of(rows, experts=16, inter=256, dtype="fp32", batch=64, limit=8) == []
