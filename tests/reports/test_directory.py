"""The report directory: whole or not at all, and never over anything else."""

import errno
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from qkspec.analysis import Report
from qkspec.errors import OutputError, UsageError
from qkspec.reports import exchange
from qkspec.reports.directory import check_target, replacing, write_directory
from qkspec.reports.formats import Format, default_formats
from qkspec.reports.saved import load

DATA = (Format.SPECTRA,)


def test_every_default_file_is_there(two_runs: Report, tmp_path: Path) -> None:
    out = write_directory(
        two_runs, tmp_path / "deep" / "out", formats=[f for f in default_formats() if f is not Format.HTML]
    )
    assert {p.name for p in out.iterdir()} == {"report.json", "heads.csv", "spectra.safetensors", "plots"}
    assert {p.name for p in (out / "plots").iterdir()} == {"sigma1.png", "freezing.png", "sec.png", "heads.png"}
    assert [p.name for p in out.parent.iterdir()] == ["out"]
    modes = {p.stat().st_mode & 0o777 for p in out.rglob("*") if p.is_file()}
    assert len(modes) == 1


def test_a_report_replaces_a_report_and_leaves_nothing_beside(
    one_run: Report, two_runs: Report, tmp_path: Path
) -> None:
    write_directory(one_run, tmp_path / "out", formats=DATA)
    write_directory(two_runs, tmp_path / "out", formats=())
    assert len(load(tmp_path / "out").states) == 2
    assert not (tmp_path / "out" / "spectra.safetensors").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_an_empty_directory_is_taken_and_a_link_is_followed(one_run: Report, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    write_directory(one_run, tmp_path / "link", formats=DATA)
    assert (tmp_path / "link").is_symlink()
    assert load(tmp_path / "real").states


@pytest.mark.parametrize("stranger", ["notes.txt", "plots/mine.txt", "report.json", ".hidden"])
def test_what_qkspec_did_not_write_is_never_replaced(one_run: Report, tmp_path: Path, stranger: str) -> None:
    out = tmp_path / "out"
    if stranger != "report.json":
        write_directory(one_run, out, formats=DATA)
    file = out / stranger
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("{}")
    with pytest.raises(UsageError, match="name another directory"):
        write_directory(one_run, out, formats=DATA)
    assert file.read_text() == "{}"


def test_a_file_in_the_way_is_kept(one_run: Report, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(UsageError, match="is a file"):
        check_target(tmp_path / "out")
    with pytest.raises(UsageError, match="not one of png"):
        write_directory(one_run, tmp_path / "new", plot_format="gif")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_leaves_the_old_report(
    one_run: Report, two_runs: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = write_directory(one_run, tmp_path / "out", formats=DATA)
    before = (out / "heads.csv").read_bytes()
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        for size in (0, 1, 100, 1_000, 5_000, 20_000):  # EFBIG stands in for ENOSPC: a write that ends early
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, limit[1]))
            with pytest.raises(OutputError, match="unchanged"):
                write_directory(two_runs, out, formats=DATA)
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
            assert (out / "heads.csv").read_bytes() == before
            assert [p.name for p in tmp_path.iterdir()] == ["out"]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, previous)
    assert load(out).states.keys() == one_run.states.keys()


def _interrupted(out: Path) -> None:
    with replacing(out) as folder:
        (folder / "half").write_text("x")
        raise KeyboardInterrupt


def test_an_interrupt_leaves_the_old_report_and_no_litter(one_run: Report, tmp_path: Path) -> None:
    out = write_directory(one_run, tmp_path / "out", formats=DATA)
    with pytest.raises(KeyboardInterrupt):
        _interrupted(out)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert load(out).states


def test_without_an_exchanging_rename_two_plain_ones_do(
    one_run: Report, two_runs: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "_exchange", lambda a, b: False)
    write_directory(one_run, tmp_path / "out", formats=DATA)
    write_directory(two_runs, tmp_path / "out", formats=DATA)
    assert len(load(tmp_path / "out").states) == 2
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_failing_publication_puts_the_old_one_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    new, out = tmp_path / "new", tmp_path / "out"
    for folder in (new, out):
        folder.mkdir()
        (folder / "name").write_text(folder.name)
    rename, calls = Path.rename, []

    def flaky(self: Path, target: Path) -> Path:
        calls.append(self)
        if self == new:
            raise OSError(errno.ENOTEMPTY if len(calls) == 1 else errno.EIO, "broken")
        return rename(self, target)

    monkeypatch.setattr(exchange, "_exchange", lambda a, b: False)
    monkeypatch.setattr(Path, "rename", flaky)
    with pytest.raises(OSError, match="broken"):
        exchange.publish(new, out)
    assert (out / "name").read_text() == "out"


def test_litter_of_a_killed_run_is_swept_a_day_later(one_run: Report, tmp_path: Path) -> None:
    old, young = tmp_path / ".out.aaaaaaaa.qkspec-partial", tmp_path / ".out.bbbbbbbb.qkspec-partial"
    for folder in (old, young):
        folder.mkdir()
    os.utime(old, (0, 0))
    write_directory(one_run, tmp_path / "out", formats=DATA)
    assert not old.exists()
    assert young.exists()


WRITER = """
import sys
from pathlib import Path
from qkspec.reports.directory import write_directory
from qkspec.reports.formats import Format
from qkspec.reports.saved import load
report = load(sys.argv[1])
print("ready", flush=True)
for _ in range(int(sys.argv[3])):
    write_directory(report, sys.argv[2], formats=(Format.SPECTRA,))
"""


def writer(report: Path, out: Path, times: int) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(report), str(out), str(times)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


KILLER = """
import itertools, os, random, signal, sys, time
from pathlib import Path
from qkspec.reports.directory import write_directory
from qkspec.reports.formats import Format
from qkspec.reports.saved import load
reports, out, times = [load(path) for path in sys.argv[1:3]], Path(sys.argv[3]), int(sys.argv[4])
place = {frozenset(report.states): i for i, report in enumerate(reports)}
start = time.monotonic()
for report in reports:
    write_directory(report, out, formats=(Format.SPECTRA,))
wait = (time.monotonic() - start) / 2
changed, there, moments = 0, 1, random.Random(0)
for i in range(times):
    if (child := os.fork()) == 0:
        for which in itertools.count(1 - there):  # the other one, then this one again, and so on
            write_directory(reports[which % 2], out, formats=(Format.SPECTRA,))
    time.sleep(wait * moments.uniform(0, 2))
    os.kill(child, signal.SIGKILL)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1]), "the writer ended by itself"
    before, there = there, place[frozenset(load(out).states)]  # load() holds every file to its digest
    changed += there != before
    wait *= 1.25 if there == before else 0.8  # however busy the machine is, about half of the kills come after a change
print(changed)
"""


def test_a_hundred_kills_leave_the_old_report_or_the_new(one_run: Report, two_runs: Report, tmp_path: Path) -> None:
    for report, name in ((one_run, "a"), (two_runs, "b")):
        write_directory(report, tmp_path / name, formats=DATA)
    out = tmp_path / "place" / "out"
    done = subprocess.run(
        [sys.executable, "-c", KILLER, str(tmp_path / "a"), str(tmp_path / "b"), str(out), "100"],
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert 5 < int(done.stdout) < 95, "the kills fall on both sides of the exchange"
    litter = [path.name for path in out.parent.iterdir() if path != out]
    assert len(litter) > 20, "the kills fall into writing"
    assert all(name.startswith(".out.") and name.endswith(".qkspec-partial") for name in litter)


def test_two_writers_at_once_do_not_hurt_each_other(one_run: Report, two_runs: Report, tmp_path: Path) -> None:
    for report, name in ((one_run, "a"), (two_runs, "b")):
        write_directory(report, tmp_path / name, formats=DATA)
    out = tmp_path / "place" / "out"
    processes = [writer(tmp_path / name, out, 15) for name in "ab"]
    for process in processes:
        process.communicate()
        assert process.returncode == 0
    load(out)
    assert [p.name for p in out.parent.iterdir()] == ["out"]
