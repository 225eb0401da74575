import shutil

import bucket
import numpy as np
import pytest
from build import collapsed_layer, random_layer, table

from qkspec import watch
from qkspec.analysis import Settings, assemble
from qkspec.checkpoints.files import LocalFolder
from qkspec.checkpoints.sequence import Run, Source, find_runs
from qkspec.metrics import names
from qkspec.readings import concatenate
from qkspec.theorem import Limits, Verdict
from qkspec.watch import Arrival, arrivals, follow, turned

STEPS = (0, 20, 40, 60, 200)


@pytest.fixture
def lost(sample):
    return sample.parent / "adamw-no-warmup"


class Clock:
    """Stands for time: at each pause the next thing happens."""

    def __init__(self, *events):
        self.events = list(events)
        self.waited = []

    def __call__(self, seconds):
        self.waited.append(seconds)
        if self.events:
            self.events.pop(0)()


def nothing():
    pass


def copied(source, run, step):
    return lambda: shutil.copytree(source / f"step-{step:06d}", run / f"step-{step:06d}")


def names_of(found):
    return [None if isinstance(arrival, str) else arrival.source.name for arrival in found]


def test_each_complete_checkpoint_once_in_the_order_of_steps(lost, tmp_path):
    run = tmp_path / "run"
    for step in (40, 0):
        copied(lost, run, step)()
    clock = Clock(nothing, copied(lost, run, 20), nothing, nothing)
    found = names_of(arrivals(str(run), every=10, idle=25, sleep=clock))
    assert [name for name in found if name] == ["step-000000", "step-000040", "step-000020"]
    assert clock.waited[0] == 1, "what is there already is measured at once"
    assert set(clock.waited[2:]) == {10}


def test_a_run_that_does_not_exist_yet(lost, tmp_path):
    run = tmp_path / "run"
    clock = Clock(nothing, copied(lost, run, 0), nothing)
    found = list(arrivals(str(run), every=5, idle=30, sleep=clock))
    assert "step-000000" in names_of(found)
    assert "does not exist" in found[0]
    assert found[-1] == ""


def test_a_checkpoint_that_still_grows_is_left_alone_until_it_stops(lost, tmp_path):
    run = tmp_path / "run"
    copied(lost, run, 0)()
    copied(lost, run, 20)()
    file = run / "step-000020" / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:100])
    seen = []
    clock = Clock(
        lambda: file.write_bytes(whole[:200]), lambda: file.write_bytes(whole[:50_000]),
        lambda: seen.append("whole") or file.write_bytes(whole), nothing, nothing,
    )  # fmt: skip
    for arrival in arrivals(str(run), every=1, idle=4, sleep=clock):
        seen += [] if isinstance(arrival, str) else [arrival.source.name]
    assert seen == ["step-000000", "whole", "step-000020"]


def test_a_file_that_is_written_over_is_measured_again(lost, tmp_path):
    run = tmp_path / "run"
    copied(lost, run, 0)()
    file = run / "step-000000" / "model.safetensors"

    def over():
        shutil.copy(lost / "step-000200" / "model.safetensors", file)

    found = names_of(arrivals(str(run), every=1, idle=4, sleep=Clock(nothing, nothing, over, nothing)))
    assert found.count("step-000000") == 2


def test_moments_of_a_run_that_collapses(lost, tmp_path):
    run = tmp_path / "run"
    for step in STEPS:
        copied(lost, run, step)()
    found = follow(arrivals(str(run), every=1, idle=2, sleep=Clock()), Settings())
    moments = [moment for moment in found if not isinstance(moment, str)]
    assert [moment.step for moment in moments] == list(STEPS)
    assert [moment.verdict for moment in moments] == ["sound", "sound", "warned", "warned", "lost"]
    assert [moment.before for moment in moments] == ["", "sound", "sound", "warned", "warned"]
    assert [moment.alarming for moment in moments] == [False, False, True, True, True]
    assert all(not moment.report.spectra for moment in moments), "spectra of a long run would fill the memory"
    from qkspec import analyze

    whole = analyze([run])
    last = moments[-1].report
    np.testing.assert_array_equal(last.readings.metric("sigma1"), whole.readings.metric("sigma1"))
    assert last.states["run"] == whole.states["run"]


def test_what_cannot_be_measured_is_said_once(lost, tmp_path):
    run = tmp_path / "run"
    copied(lost, run, 0)()
    config = run / "step-000000" / "config.json"
    config.write_text(config.read_text().replace('"n_head": 2', '"n_head": 7'))
    found = follow(arrivals(str(run), every=1, idle=3, sleep=Clock()), Settings())
    moments = [moment for moment in found if not isinstance(moment, str)]
    assert len(moments) == 1
    assert moments[0].report is None
    assert moments[0].problem
    assert not moments[0].alarming


def test_what_is_held_back_is_told_when_the_watch_ends(lost, tmp_path):
    run = tmp_path / "run"
    copied(lost, run, 0)()
    config = run / "step-000000" / "config.json"
    config.write_text(config.read_text().replace('"n_head": 2', '"n_head": 7'))
    (source,) = (source for run in find_runs([str(run)]) for source in run.sources)
    (moment,) = follow(iter([Arrival("run", source)]), Settings())
    assert moment.problem
    held = {}
    found = follow(iter([Arrival("run", source), ""]), Settings(), held)
    assert next(found) == ""
    found.close()
    assert [(looks, one.problem) for looks, one in held.values()] == [(watch.PATIENCE - 1, moment.problem)]


def test_a_save_that_pauses_halfway_is_no_problem(lost, tmp_path):
    run = tmp_path / "run"
    copied(lost, run, 0)()
    file = run / "step-000000" / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    clock = Clock(nothing, nothing, lambda: file.write_bytes(whole), nothing, nothing)
    found = follow(arrivals(str(run), every=1, idle=3, sleep=clock), Settings())
    (moment,) = [moment for moment in found if not isinstance(moment, str)]
    assert moment.report is not None


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_a_run_in_a_bucket(lost, monkeypatch):
    with bucket.served() as (port, client):
        bucket.use(monkeypatch, port)
        client.create_bucket(Bucket="runs")

        def put(step, name, size=None):
            body = (lost / f"step-{step:06d}" / name).read_bytes()[:size]
            client.put_object(Bucket="runs", Key=f"lost/step-{step:06d}/{name}", Body=body)

        def whole(step):
            return lambda: [put(step, name) for name in ("config.json", "model.safetensors")]

        clock = Clock(
            whole(0), nothing, whole(40), lambda: put(200, "model.safetensors", 50_000), whole(200),
            nothing, nothing, nothing,
        )  # fmt: skip
        said, moments = [], []
        for moment in follow(arrivals("s3://runs/lost", every=1, idle=3, sleep=clock), Settings()):
            (said if isinstance(moment, str) else moments).append(moment)
        assert [moment.step for moment in moments] == [0, 40, 200]
        assert [moment.verdict for moment in moments] == ["sound", "warned", "lost"]
        assert "s3://runs/lost: does not exist" in said[0]
        assert not any(said[2:])


def test_a_measured_checkpoint_at_a_url_is_asked_for_no_more(monkeypatch):
    asked = []

    source = {step: Source(f"step-{step}", f"s3://b/step-{step}", step, LocalFolder(".")) for step in (1, 2)}
    monkeypatch.setattr(Source, "fingerprint", lambda self: asked.append(self.step) or f"{self.step}")
    monkeypatch.setattr(watch, "refresh", lambda url: None)
    monkeypatch.setattr(watch, "find_runs", lambda paths: (Run("b", tuple(source.values()), paths[0]),))
    assert [n for n in names_of(arrivals("s3://b", every=1, idle=3, sleep=Clock())) if n] == ["step-1", "step-2"]
    assert asked.count(1) == 2
    assert asked.count(2) > 2


def judged(*tables):
    readings = concatenate(tables, names())
    return assemble(
        readings, np.ones(len(readings), dtype=bool), Limits(), checkpoints=(), skipped={}, spectra={}
    )  # fmt: skip


def test_turns_are_heads_whose_verdict_became_graver():
    healthy = table(random_layer(heads=1, d_q=16, d=64), checkpoint="a", step=0)
    bad = table(collapsed_layer(), checkpoint="b", step=1)
    (turn,) = turned(judged(healthy, bad))
    assert (turn.module, turn.head, turn.before, turn.after) == ("h.0.attn", 0, Verdict.HEALTHY, Verdict.MALIGNANT)
    assert turned(judged(bad, table(random_layer(heads=1, d_q=16, d=64), checkpoint="c", step=2))) == ()
    assert turned(judged(bad, table(collapsed_layer(), checkpoint="c", step=2))) == ()
    assert len(turned(judged(bad))) == 1, "a first checkpoint is held against health"
