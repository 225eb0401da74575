"""A report written and read back: equal to the last bit; anything else is refused in one sentence."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qkspec.analysis import Report, assemble
from qkspec.baseline import Bands
from qkspec.errors import InputError
from qkspec.maps import Maps
from qkspec.readings import NO_STEP, TEXT, Readings
from qkspec.reports import csvfile
from qkspec.reports.directory import write_directory
from qkspec.reports.formats import Format
from qkspec.reports.saved import is_report, load
from qkspec.theorem import KINDS, Limits

DATA = (Format.SPECTRA,)


def assert_same(a: Report, b: Report) -> None:
    assert list(a.readings.columns) == list(b.readings.columns)
    for name in a.readings.columns:
        x, y = a.readings[name], b.readings[name]
        assert x.tolist() == y.tolist() if name in TEXT else x.tobytes() == y.tobytes(), name
    assert a.verdicts.tolist() == b.verdicts.tolist()
    assert a.applicable.tolist() == b.applicable.tolist()
    assert (a.limits, a.states, a.checkpoints) == (b.limits, b.states, b.checkpoints)
    assert dict(a.skipped) == dict(b.skipped)
    assert dict(a.provenance) == dict(b.provenance)
    assert set(a.spectra) == set(b.spectra)
    assert all(a.spectra[key].tobytes() == b.spectra[key].tobytes() for key in a.spectra)


def test_a_report_comes_back_to_the_last_bit(two_runs: Report, tmp_path: Path) -> None:
    out = write_directory(two_runs, tmp_path / "out", formats=DATA)
    assert is_report(out)
    assert_same(two_runs, load(out))


def test_bands_and_maps_of_every_kind_come_back(one_run: Report, two_runs: Report, tmp_path: Path) -> None:
    columns = dict(one_run.readings.columns)
    for kind in KINDS[1:]:
        columns |= {f"{kind}_entropy": np.linspace(0, 1, len(one_run.readings)) + len(kind)}
    for readings in (two_runs.readings, stepless(two_runs.readings)):
        bands = Bands.of(readings, "runs/good \udc80", margin=3.0)
        report = replace(one_run, readings=Readings(columns), bands=bands)
        back = load(write_directory(report, tmp_path / f"out{len(bands.steps)}", formats=()))
        assert back.readings.metrics == report.readings.metrics
        assert back.bands is not None
        assert (back.bands.name, back.bands.margin) == (bands.name, bands.margin)
        part = load(tmp_path / f"out{len(bands.steps)}", heads=(0,))
        assert part.bands is not None
        assert part.bands.plain() == bands.plain()
        for metric in ("sigma1", "freezing_ratio", "predicted_entropy"):
            ours, theirs = (b.limits(report.readings, metric) for b in (bands, back.bands))
            assert ours.tobytes() == theirs.tobytes()


def stepless(readings: Readings) -> Readings:
    return Readings({**readings.columns, "step": np.full(len(readings), NO_STEP, dtype=np.int64)})


@pytest.mark.parametrize(
    "damage",
    [{"steps": [1, 2]}, {"layers": [{}]}, {"steps": "x"}, {"margin": None}, {"margin": math.nan}, {"steps": [10**20]}],
)
def test_damaged_bands_are_refused(one_run: Report, tmp_path: Path, damage: dict[str, object]) -> None:
    report = replace(one_run, bands=Bands.of(one_run.readings, "base"))
    out = write_directory(report, tmp_path / "out", formats=())
    document = json.loads((out / "report.json").read_text())
    document["baseline"] |= damage
    (out / "report.json").write_text(json.dumps(document))
    with pytest.raises(InputError, match="damaged"):
        load(out)


def test_pictures_of_maps_come_back(with_maps: Report, tmp_path: Path) -> None:
    out = write_directory(with_maps, tmp_path / "out", formats=(Format.MAPS,))
    assert_same_maps(load(out).maps, with_maps.maps)
    again = write_directory(load(out), tmp_path / "again", formats=(Format.MAPS,))
    assert (again / "maps.safetensors").read_bytes() == (out / "maps.safetensors").read_bytes()
    mirrored = Maps({key: codes[:, ::-1] for key, codes in with_maps.maps.pictures.items()})
    assert_same_maps(
        load(write_directory(replace(with_maps, maps=mirrored), tmp_path / "views", formats=(Format.MAPS,))).maps,
        mirrored,
    )
    bare = write_directory(with_maps, tmp_path / "bare", formats=())
    assert not (bare / "maps.safetensors").exists()
    assert "analyze the checkpoints again" in load(bare).maps.note


def assert_same_maps(a: Maps, b: Maps) -> None:
    assert (a.cell, a.note) == (b.cell, b.note)
    assert set(a.given) == set(b.given)
    for mine, theirs in ((a.pictures, b.pictures), (a.errors, b.errors), *((a.given[k], b.given[k]) for k in a.given)):
        assert set(mine) == set(theirs)
        assert all(np.array_equal(mine[key], theirs[key]) for key in mine)


@pytest.mark.parametrize("bad", ["dtype", "shape", "errors", "heads", "cell"])
def test_a_file_of_maps_that_holds_something_else_is_refused(with_maps: Report, tmp_path: Path, bad: str) -> None:
    key = next(iter(with_maps.maps.pictures))
    maps = {
        "dtype": lambda: Maps({key: np.zeros((4, 8, 8), np.float32)}),  # type: ignore[dict-item]
        "shape": lambda: Maps({key: np.zeros((4, 80, 80), np.uint8)}),
        "errors": lambda: Maps(with_maps.maps.pictures, {key: np.zeros(4)}),
        "heads": lambda: Maps(with_maps.maps.pictures, {key: np.zeros((4, 1))}),
        "cell": lambda: replace(with_maps.maps, cell=7),
    }[bad]()
    out = write_directory(replace(with_maps, maps=maps), tmp_path / "out", formats=(Format.MAPS,))
    with pytest.raises(InputError, match=r"maps\.safetensors: holds tensors that are no pictures"):
        load(out)


@pytest.mark.parametrize("shape", [(1, 3), (3, 16), (4, 15), (4,)])
def test_spectra_of_other_shapes_than_the_table_says_are_refused(
    one_run: Report, tmp_path: Path, shape: tuple[int, ...]
) -> None:
    """The digests of such a report are right: it was written so."""
    key = next(iter(one_run.spectra))
    wrong = replace(one_run, spectra={**one_run.spectra, key: np.ones(shape)})
    found = load(write_directory(wrong, tmp_path / "out", formats=(Format.SPECTRA,)))
    with pytest.raises(InputError, match=r"spectra\.safetensors: .*attn is no float64 tensor of 4 heads"):
        found.spectra[key]


def test_one_run_has_no_run_in_its_tensor_names(one_run: Report, two_runs: Report, tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    write_directory(one_run, tmp_path / "one", formats=DATA)
    write_directory(two_runs, tmp_path / "two", formats=DATA)
    one = load_file(tmp_path / "one" / "spectra.safetensors")
    assert "step-000000/h.0.attn" in one
    assert "sound/step-000000/h.0.attn" in load_file(tmp_path / "two" / "spectra.safetensors")
    assert one["step-000000/h.0.attn"].dtype == np.float64
    assert_same(one_run, load(tmp_path / "one"))


def test_writing_what_was_read_gives_the_same_bytes(two_runs: Report, tmp_path: Path) -> None:
    write_directory(two_runs, tmp_path / "a", formats=DATA)
    write_directory(load(tmp_path / "a"), tmp_path / "b", formats=DATA)
    for name in ("report.json", "heads.csv", "spectra.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_other_limits_come_back(two_runs: Report, tmp_path: Path) -> None:
    limits = Limits(effective_rank=3.5, sec=0.99, freezing=0.1)
    report = assemble(
        two_runs.readings,
        two_runs.applicable,
        limits,
        checkpoints=two_runs.checkpoints,
        skipped=two_runs.skipped,
        spectra=two_runs.spectra,
    )
    back = load(write_directory(report, tmp_path / "out", formats=DATA))
    assert back.limits == limits
    assert_same(report, back)


def hostile(report: Report, name: str, value: float) -> Report:
    """The report with a name from hell for its run and one value changed."""
    columns = dict(report.readings.columns)
    columns["run"] = np.array([name] * len(report.readings), dtype=object)
    columns["step"] = np.full(len(report.readings), NO_STEP, dtype=np.int64)
    first = columns["frobenius"].copy()
    first[0] = value
    columns["frobenius"] = first
    return assemble(
        Readings(columns),
        report.applicable,
        report.limits,
        checkpoints=tuple(replace(fact, run=name, step=None) for fact in report.checkpoints),
        skipped={},
        spectra={},
    )


@settings(max_examples=25, deadline=None)
@given(name=st.text(max_size=30), value=st.floats(allow_subnormal=True))
def test_any_name_and_any_float_come_back(
    name: str, value: float, one_run: Report, tmp_path_factory: pytest.TempPathFactory
) -> None:
    report = hostile(one_run, name, math.nan if math.isnan(value) else value)
    assert_same(report, load(write_directory(report, tmp_path_factory.mktemp("r") / "out", formats=())))


def test_the_csv_has_the_columns_of_the_contract_first(one_run: Report, tmp_path: Path) -> None:
    lines = list(csvfile.lines(one_run))
    header = lines[0].rstrip("\n").split(",")
    contract = [
        "run",
        "checkpoint",
        "step",
        "block",
        "layer",
        "module",
        "head",
        "kv_head",
        "d_model",
        "d_q",
        "sigma1",
        "sigma2",
        "frobenius",
        "stable_rank",
        "effective_rank",
        "s90",
        "s99",
        "sec_1",
        "sec_2",
        "sec_4",
        "sec_8",
        "trace",
        "positive_fraction",
        "sigma1_wq",
        "sigma1_wk",
        "logit_std",
        "freezing_ratio",
        "predicted_entropy",
        "predicted_rank",
        "predicted_diagonal",
        "verdict",
    ]
    assert header[: len(contract)] == contract
    assert set(header) == {*contract, *one_run.readings.metrics, "judged_map", "theorem_applies"}
    assert len(lines) == len(one_run.readings) + 1
    assert not {"nan", "NaN", "None"} & {cell for line in lines for cell in line.rstrip("\n").split(",")}


def test_what_was_not_measured_is_an_empty_cell(one_run: Report) -> None:
    columns = {**one_run.readings.columns, "sigma1": np.full(len(one_run.readings), np.nan)}
    report = assemble(
        Readings(columns), one_run.applicable, one_run.limits, checkpoints=one_run.checkpoints, skipped={}, spectra={}
    )
    header, row = (line.rstrip("\n").split(",") for line in list(csvfile.lines(report))[:2])
    cells = dict(zip(header, row, strict=True))
    assert cells["sigma1"] == ""
    assert cells["verdict"] == "broken"


def no_constant(text: str) -> None:
    raise AssertionError(f"bare {text} in JSON")


def test_json_is_strict_ascii_and_says_what_matters(two_runs: Report, tmp_path: Path) -> None:
    text = (write_directory(two_runs, tmp_path / "out", formats=DATA) / "report.json").read_text(encoding="ascii")
    document = json.loads(text, parse_constant=no_constant)
    assert document["schema"] == 1
    assert document["limits"]["freezing"] == 0.45
    assert {source["format"] for source in document["sources"]} == {"memory"}
    lost, sound = document["runs"]
    assert lost["state"]["verdict"] == "lost"
    assert sound["verdicts"] == {"healthy": 12}
    assert [layer["module"] for layer in lost["layers"]] == ["h.0.attn", "h.1.attn", "h.2.attn"]
    assert {head["verdict"] for head in document["heads"]} == {"malignant"}
    assert all(any(c["holds"] for c in head["evidence"]) for head in document["heads"])
    (band,) = {tuple(layer["random_weights"].values()) for layer in document["runs"][0]["layers"]}
    assert band == two_runs.random_band(0)
    bad = [head for head in document["heads"] if head["verdict"] == "malignant"]
    assert {head["confidence"] for head in bad} == {"certain"}
    assert all(c["error"] > 0 for head in bad for c in head["evidence"] if c["metric"] == "predicted_entropy")
    assert all(head["confidence"] is None for head in document["heads"] if head not in bad)
    assert list(document["skipped"]) == ["lost/step-000320"]


def write(two_runs: Report, tmp_path: Path) -> Path:
    return write_directory(two_runs, tmp_path / "out", formats=DATA)


def edit(out: Path, change: Callable[[dict], object]) -> None:
    document = json.loads((out / "report.json").read_text())
    change(document)
    (out / "report.json").write_text(json.dumps(document))


@pytest.mark.parametrize("name", ["heads.csv", "spectra.safetensors", "report.json"])
@pytest.mark.parametrize("damage", ["cut", "gone", "empty", "flip"])
def test_damage_is_refused(two_runs: Report, tmp_path: Path, name: str, damage: str) -> None:
    out = write(two_runs, tmp_path)
    data = bytearray((out / name).read_bytes())
    if damage == "gone":
        (out / name).unlink()
    else:
        middle = len(data) // 2
        data[middle] ^= 0x80
        (out / name).write_bytes({"cut": data[:-10], "empty": b"", "flip": data}[damage])
    with pytest.raises(InputError, match=r"report\.json|heads\.csv|spectra"):
        load(out)


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.update(kind="other"),
        lambda d: d.update(schema=2),
        lambda d: d.update(schema=float("1e400")),
        lambda d: d.pop("limits"),
        lambda d: d["limits"].update(freezing=-1),
        lambda d: d["limits"].update(unknown=1),
        lambda d: d.update(limits=[1]),
        lambda d: d.update(sources=3),
        lambda d: d["sources"][0].pop("name"),
        lambda d: d.update(skipped=[]),
        lambda d: d.update(files={}),
        lambda d: d.update(rows=1),
        lambda d: d.update(rows=float("1e999")),
        lambda d: d["limits"].update(freezing=10**400),
        lambda d: d["sources"][0].update(step=float("1e999")),
        lambda d: d.update(metrics=["sigma1", "no such"]),
        lambda d: d.update(metrics=7),
        lambda d: d.update(provenance=None),
    ],
)
def test_an_edited_report_json_is_refused_in_one_sentence(
    two_runs: Report, tmp_path: Path, change: Callable[[dict], object]
) -> None:
    out = write(two_runs, tmp_path)
    edit(out, change)
    with pytest.raises(InputError) as caught:
        load(out)
    assert "\n" not in str(caught.value)


def test_a_foreign_directory_is_no_report(tmp_path: Path) -> None:
    assert not is_report(tmp_path)
    (tmp_path / "report.json").write_text("[" * 100_000)
    assert not is_report(tmp_path)
    with pytest.raises(InputError, match="not valid JSON"):
        load(tmp_path)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_csv_of_nonsense_never_raises_anything_else(
    two_runs: Report, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    good = "".join(list(csvfile.lines(two_runs))[:4]).encode()
    start = data.draw(st.integers(0, len(good)))
    insert = data.draw(st.binary(max_size=6))
    end = data.draw(st.integers(start, len(good)))
    path = tmp_path_factory.getbasetemp() / "fuzz.csv"
    path.write_bytes(good[:start] + insert + good[end:])
    try:
        readings, applicable = csvfile.read(path, two_runs.readings.metrics)
    except InputError:
        return
    assert len(readings) == len(applicable)


def test_heads_outside_a_baseline_say_so(two_runs: Report) -> None:
    from qkspec.baseline import Bands
    from qkspec.reports.jsonfile import document
    from qkspec.reports.view import RunView, reasons

    healthy = two_runs.readings.where(two_runs.readings["run"] == "sound")
    report = replace(two_runs, bands=Bands.of(healthy, "healthy run"))
    head = document(report)["heads"][0]
    assert {c["metric"] for c in head["baseline"] if c["holds"]} >= {"sigma1", "freezing_ratio"}
    view = RunView.of(report, "lost")
    assert any("outside the band of healthy run" in reason for reason in reasons(view, view.worst()[0]))
    assert document(two_runs)["heads"][0]["baseline"] == []
