"""What a gate writes for machines: valid by the official schemas, true to the exit code, and inert."""

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from markdown_it import MarkdownIt

from qkspec.analysis import Report
from qkspec.errors import OutputError
from qkspec.gate import Failure, Outcome, check
from qkspec.policy import Policy
from qkspec.reports import github, junit, sarif
from qkspec.reports.crossings import crossings, document
from qkspec.reports.wholefile import whole_file
from qkspec.theorem import Verdict

DATA = Path(__file__).parent.parent / "data"  # official schemas; its README names their sources

EVIL = "x\x1b[31m\ufffe\u202e</testcase><b>\n::error::%0A@team [a](http://evil) ]]>"


def written(write: Callable[..., None], *arguments: object) -> str:
    out = io.StringIO()
    write(*arguments, out)
    return out.getvalue()


@pytest.fixture(params=["failed", "passed", "unmeasured", "skipped", "nothing", "evil", "many"])
def outcome(request: pytest.FixtureRequest, two_runs: Report) -> Outcome:
    policy = Policy(fail_on=frozenset({Verdict.MALIGNANT}), max_freezing=1.0)
    failed = check(two_runs, policy)
    clean = replace(failed, failures=(), skipped={})
    evil = Failure(EVIL, EVIL, EVIL, EVIL)
    return {
        "failed": failed,
        "passed": clean,
        "unmeasured": replace(clean, unmeasured=(Failure("run/step m head 0", "--max-sec sec_4", None, 0.9, 3),)),
        "skipped": replace(clean, skipped={"run/step": "damaged"}, allow_skipped=True),
        "nothing": replace(clean, heads=0),
        "evil": Outcome((evil,), (replace(evil, value=None),), {EVIL: EVIL}, 3, warnings=(EVIL,), strict=True),
        "many": replace(clean, failures=failed.failures * 400),
    }[request.param]


def test_junit_is_valid_and_says_what_the_exit_code_says(outcome: Outcome) -> None:
    import xmlschema

    text = written(junit.write, outcome)
    xmlschema.XMLSchema(DATA / "junit-10.xsd").validate(text)
    suite = ET.fromstring(text).find("testsuite")
    assert suite is not None
    failures, errors = int(suite.attrib["failures"]), int(suite.attrib["errors"])
    assert len(suite.findall("testcase/failure")) == failures
    assert len(suite.findall("testcase/error")) == errors
    assert len(suite.findall("testcase")) == int(suite.attrib["tests"])
    assert outcome.exit_code == (1 if failures else 3 if errors else 0)
    assert len(text) < 2_000_000


def test_sarif_is_valid_and_says_what_the_exit_code_says(outcome: Outcome, two_runs: Report) -> None:
    from jsonschema import Draft4Validator
    from sarif_pydantic import Sarif

    schema = json.loads((DATA / "sarif-2.1.0-rtm.4.json").read_text())
    text = written(sarif.write, two_runs, outcome)
    assert text.isascii()
    Draft4Validator(schema, format_checker=Draft4Validator.FORMAT_CHECKER).validate(json.loads(text))
    Sarif.model_validate_json(text)
    (run,) = json.loads(text)["runs"]
    rules = [rule["id"] for rule in run["tool"]["driver"]["rules"]]
    assert len(set(rules)) == len(rules)
    for result in run["results"]:
        assert rules[result["ruleIndex"]] == result["ruleId"]
        (location,) = result["locations"]
        assert not location["physicalLocation"]["artifactLocation"]["uri"].startswith("/")
    levels = [result["level"] for result in run["results"]]
    assert ("error" in levels) == (outcome.exit_code == 1)
    assert run["invocations"][0]["executionSuccessful"] == (outcome.exit_code != 3)


def test_the_schemas_refuse_what_is_no_such_file(two_runs: Report) -> None:
    import xmlschema
    from jsonschema import Draft4Validator

    outcome = check(two_runs, Policy(fail_on=frozenset({Verdict.MALIGNANT})))
    text = written(junit.write, outcome).replace("<failure ", "<fault ").replace("</failure>", "</fault>")
    assert not xmlschema.XMLSchema(DATA / "junit-10.xsd").is_valid(text)
    document = json.loads(written(sarif.write, two_runs, outcome))
    document["runs"][0]["results"][0]["level"] = "fatal"
    schema = json.loads((DATA / "sarif-2.1.0-rtm.4.json").read_text())
    assert not Draft4Validator(schema).is_valid(document)


def test_annotations_are_single_commands(outcome: Outcome) -> None:
    lines = list(github.annotations(outcome))
    assert len(lines) <= 20
    for line in lines:
        assert line.isprintable()
        assert line.startswith(("::error title=qkspec gate", "::warning title=qkspec gate"))
        assert line.split("::")[1].count(":") == 0
        assert "%0A@" not in line
    assert any(line.startswith("::error") for line in lines) == (outcome.exit_code != 0)


def test_markdown_says_the_verdict_and_stays_inert(outcome: Outcome) -> None:
    html = MarkdownIt("gfm-like", {"linkify": False}).render(written(github.write_markdown, outcome))
    assert {0: "gate: passed", 1: "gate: failed", 3: "gate: not proven"}[outcome.exit_code] in html
    for tag in ("<b>", "<a ", "<img", "<script"):
        assert tag not in html


def test_a_failing_head_is_found_again(two_runs: Report) -> None:
    outcome = check(two_runs, Policy(fail_on=frozenset({Verdict.MALIGNANT}), last=True))
    paths = {("lost", "step-000160"): "models/a b/é.safetensors"}
    report = replace(
        two_runs,
        checkpoints=tuple(replace(f, path=paths.get((f.run, f.name), f.path)) for f in two_runs.checkpoints),
    )
    (run,) = json.loads(written(sarif.write, report, outcome))["runs"]
    assert len(run["results"]) == 6
    first = run["results"][0]
    assert first["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] == "models/a%20b/%C3%A9.safetensors"
    assert first["message"]["text"].startswith("lost/step-000160 h.0.attn head 0: verdict malignant")
    assert len({r["partialFingerprints"]["qkspec/v1"] for r in run["results"]}) == 6


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("s3://bucket/a b", "s3://bucket/a%20b"),
        ("/etc/x", "file:///etc/x"),
        ("in/side", "in/side"),
        ("bad\udc80", "bad%80"),
    ],
)
def test_paths_become_uris(path: str, expected: str) -> None:
    assert sarif.uri(path) == expected


def test_it_knows_github(monkeypatch: pytest.MonkeyPatch) -> None:
    assert github.runs_here({"GITHUB_ACTIONS": "true"})
    assert not github.runs_here({})


def test_a_file_is_whole_or_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    with whole_file(path) as file:
        file.write("one")
    with pytest.raises(RuntimeError):
        _fail(path)
    assert path.read_text() == "one"
    assert [p.name for p in path.parent.iterdir()] == ["file"]
    with pytest.raises(OutputError, match="could not be written"), whole_file(path / "below"):
        pass


def _fail(path: Path) -> None:
    with whole_file(path) as file:
        file.write("two")
        raise RuntimeError


def test_a_lost_run_takes_a_line_a_head_and_rule_and_loses_nothing(two_runs: Report) -> None:
    outcome = check(two_runs, Policy(fail_on=frozenset({Verdict.MALIGNANT}), max_freezing=1.0, min_entropy=0.5))
    found = crossings(outcome.failures)
    assert len(found) == len({(f.rule, f.head) for f in outcome.failures}) < len(outcome.failures)
    assert sum(len(crossing.failures) for crossing in found) == len(outcome.failures)
    for crossing in found:
        steps = [int(failure.at.removeprefix("step ")) for failure in crossing.failures]
        assert steps == sorted(set(steps))
        values = [failure.value for failure in crossing.failures]
        graver = min if crossing.rule.startswith("--min") else max  # of a verdict there is one value here
        assert crossing.worst.value == graver(values)  # type: ignore[type-var]
        if len(steps) > 1:
            assert crossing.message.startswith(f"{crossing.failures[0].head}: {crossing.rule} ")
            assert f"; {len(steps)} checkpoints, first step {steps[0]}" in crossing.message
    plain = json.loads(json.dumps(document(outcome), allow_nan=False))
    written_out = [(c["rule"], f["where"], f["value"]) for c in plain["crossed"] for f in c["checkpoints"]]
    assert sorted(written_out, key=str) == sorted(((f.rule, f.where, f.value) for f in outcome.failures), key=str)
    assert plain["result"] == "failed"


def test_weights_that_are_not_finite_are_graver_than_any_number() -> None:
    failures = [
        Failure("r/c m head 0", "--max-sigma1 sigma1", value, 1.0, 0, "r m head 0", "c")
        for value in (9.0, "broken", 99.0)
    ]
    (found,) = crossings(failures)
    assert found.worst.value == "broken"


def test_github_is_given_no_more_than_it_shows(two_runs: Report) -> None:
    failed = check(two_runs, Policy(max_sigma1=0.0))
    lines = list(github.annotations(replace(failed, skipped={f"run/step-{i}": "damaged" for i in range(30)})))
    assert sum(line.startswith("::error") for line in lines) == 10
    assert sum(line.startswith("::warning") for line in lines) == 10
    assert "15 more like these" in lines[9]
    assert "21 more like these" in lines[-1]
