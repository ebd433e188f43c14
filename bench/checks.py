"""`bench check`: does a plugin keep the contract? Small runs of it, and what they must show.

Plugin code runs only in children, confined as in `bench run`, in a temporary folder, on 64
synthetic images. The archive that holds them has a test split that cannot be read.
"""

from __future__ import annotations

import dataclasses
import json
import math
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from bench import manager, plan, rehearsal
from bench.errors import UnknownName, UserError
from bench.probe import probe
from bench.rehearsal import IMAGE_SIZE, JOBS, LONG, RUNS, SHORT, STOP, Part


@dataclass(frozen=True)
class Check:
    """One check's outcome.

    Attributes:
        id: what `expected_failures` and `only` name.
        reason: why it matters, a line.
        status: passed, failed, expected (it failed, and that was announced) or skipped.
        detail: what was found, a line; may be empty where it passed.
    """

    id: str
    reason: str
    status: str
    detail: str = ""


Evidence = Mapping[str, list[Part]]
Verdict = tuple[str, str]  # status, detail
PASSED: Verdict = ("passed", "")


def _loss(evidence: Evidence) -> Verdict:
    part = evidence["long"][0]
    record = part.records[0]
    if _is_floor(part):
        return "skipped", "a floor that trains nothing"
    if record["ended"] < LONG:
        return "failed", f"took {record['ended']} of {LONG} steps"
    if not part.losses or not all(isinstance(x, float) and math.isfinite(x) for x in part.losses):
        return "failed", "a loss is missing or not finite"
    if not record["fit"]:
        return "skipped", "n/a: own loop, whose loss may be a game's; every one is finite"
    quarter = LONG // 4
    first = sum(part.losses[:quarter]) / quarter
    last = sum(part.losses[-quarter:]) / quarter
    said = f"mean of the first {quarter} steps {first:.4g}, of the last {last:.4g}"
    return ("passed" if last < first else "failed"), said


def _gradients(evidence: Evidence) -> Verdict:
    part = evidence["repeated"][0]
    if _is_floor(part):
        return "skipped", "a floor that trains nothing"
    record = part.records[0]
    without = [name for name in record["influential"] if record["gradients"][name] == 0]
    if without:
        return "failed", f"no gradient reached {_some(without)}"
    return "passed", f"{len(record['influential'])} parameters"


def _seed(evidence: Evidence) -> Verdict:
    first, again, other = (evidence[n][0].sha256 for n in ("short", "repeated", "other"))
    if first != again:
        return "failed", "two runs with one seed left different bytes"
    if first == other:
        return "failed", "two seeds left the same bytes"
    return PASSED


def _labels(evidence: Evidence) -> Verdict:
    plain, other = evidence["short"][0], evidence["relabelled"][0]
    if other.records[0]["uses_labels"]:
        return "skipped", "the card says that it uses labels"
    if plain.sha256 != other.sha256:
        return "failed", "other labels left other bytes, and the card says that it uses none"
    return PASSED


def _resume(evidence: Evidence) -> Verdict:
    whole, (stopped, resumed) = evidence["short"][0], evidence["resumed"]
    if stopped.status != "stopped":
        if _is_floor(evidence["resumed"][0]):
            return "skipped", "a floor that trains nothing"
        return "failed", f"SIGTERM in step {STOP} did not stop the run ({_ending(stopped)})"
    begun = resumed.records[0]["begun"]
    if begun != STOP + 1:
        return "failed", f"stopped after {STOP + 1} steps, went on from step {begun}"
    if resumed.sha256 != whole.sha256:
        return "failed", f"stopped after {STOP + 1} of {SHORT} steps, it left other bytes"
    return PASSED


def _finished(evidence: Evidence) -> Verdict:
    first, again = evidence["repeated"]
    if _is_floor(first):
        return "skipped", "a floor that trains nothing"
    record = again.records[0]
    if (record["begun"], record["ended"]) != (SHORT, SHORT):
        return "failed", f"went on from step {record['begun']} to {record['ended']} of {SHORT}"
    if again.sha256 != first.sha256:
        return "failed", "called again after its last step, it left other bytes"
    return PASSED


def _backbone(evidence: Evidence) -> Verdict:
    misfit = evidence["short"][0].misfit
    return ("failed", misfit) if misfit else PASSED


def _writes(evidence: Evidence) -> Verdict:
    paths = evidence["repeated"][0].records[0]["writes"]
    return ("failed", f"tried to write {_some(paths)}") if paths else PASSED


def _ranks(evidence: Evidence) -> Verdict:
    one, two = (record["parameters"] for record in evidence["ranks"][0].records)
    different = [name for name in one if one[name] != two.get(name)]
    if different or one.keys() != two.keys():
        return "failed", f"different on two processes: {_some(different or sorted(two))}"
    return "passed", f"{len(one)} parameters"


def _samples(evidence: Evidence) -> Verdict:
    drawn = evidence["short"][0].drawn
    return ("passed", f"{drawn} images") if drawn else ("skipped", "n/a: it draws no images")


@dataclass(frozen=True)
class _Rule:
    reason: str
    runs: tuple[str, ...] = ()
    verdict: Callable[[Evidence], Verdict] = field(default=lambda _: PASSED)


RULES = {
    "card": _Rule("the card says all that boards and plans need"),
    "loss": _Rule("the loss falls over 60 steps on 64 images", ("long",), _loss),
    "gradients": _Rule("every parameter behind the features is trained", ("repeated",), _gradients),
    "seed": _Rule("the seed alone decides the bytes", ("short", "repeated", "other"), _seed),
    "labels": _Rule("labels have no part in it", ("short", "relabelled"), _labels),
    "resume": _Rule("a stopped run goes on to the same bytes", ("short", "resumed"), _resume),
    "finished": _Rule("a finished run takes no further step", ("repeated",), _finished),
    "backbone": _Rule("the backbone returned is of the given architecture", ("short",), _backbone),
    "writes": _Rule("nothing is written outside the run's folder", ("repeated",), _writes),
    "samples": _Rule("what it draws has an image's shape and range", ("short",), _samples),
    "ranks": _Rule("two processes end with equal parameters", ("ranks",), _ranks),
}


def main(
    names: list[str],
    *,
    expected_failures: dict[str, str] | None = None,
    as_json: bool = False,
    only: Collection[str] | None = None,
    settings: Sequence[str] = (),
) -> int:
    """Check plugins and print a line per check; return 1 if any failed, else 0.

    Args:
        names: installed names or files.
        expected_failures: {check: why it fails}; one that passes nevertheless has failed.
        only: the checks to do, all by default.
        settings: METHOD.FIELD=VALUE each, over the recipe "small".

    Raises:
        UserError: an unknown plugin or check, an expected failure without a reason, a setting of
            another method or one that its configuration refuses.
    """
    for name in names:
        manager.find(name)
    methods = [manager.method_name(name) for name in names]
    by_method = plan.parse_settings(settings, methods)
    failed, document = False, {}
    width = max(map(len, RULES))
    for name, method in zip(names, methods, strict=True):
        variant = by_method.get(method, {})
        checks = run_checks(name, expected_failures=expected_failures, only=only, settings=variant)
        failed |= any(check.status == "failed" for check in checks)
        document[name] = [dataclasses.asdict(check) for check in checks]
        if not as_json:
            given = ", ".join(f"{field}={value}" for field, value in variant.items())
            print(f"{method} ({given}):" if given else f"{method}:")
            for check in checks:
                detail = f" ({check.detail})" if check.detail else ""
                print(f"  {check.status:<8} {check.id:<{width}} {check.reason}{detail}", flush=True)
    if as_json:
        print(json.dumps(document, indent=1))
    return int(failed)


def run_checks(
    name: str,
    *,
    expected_failures: Mapping[str, str] | None = None,
    only: Collection[str] | None = None,
    settings: Mapping[str, str] | None = None,
) -> list[Check]:
    """Check one plugin, an installed name or a file; see `main` for arguments and errors.

    Args:
        settings: {field: text} over the recipe "small".
    """
    expected, chosen = expected_failures or {}, RULES if only is None else only
    require_known(expected, chosen)
    with tempfile.TemporaryDirectory(prefix="bench-check-") as temporary:
        rules = {check: rule for check, rule in RULES.items() if check in chosen}
        return [
            _against(expected, Check(check, rules[check].reason, *verdict))
            for check, verdict in _verdicts(name, rules, Path(temporary), settings or {}).items()
        ]


def require_known(expected_failures: Mapping[str, str], only: Collection[str] = ()) -> None:
    """Refuse unknown checks and expected failures without a reason; see `main`."""
    for check in (*expected_failures, *only):
        if check not in RULES:
            raise UnknownName("check", check, list(RULES))
    for check, why in expected_failures.items():
        if not why.strip():
            raise UserError(f"check {check!r} is expected to fail without a reason; give one")


def _against(expected: Mapping[str, str], check: Check) -> Check:
    why = expected.get(check.id)
    if why is None or check.status == "skipped":
        return check
    if check.status == "failed":
        return dataclasses.replace(check, status="expected", detail=f"{check.detail}; {why}")
    return dataclasses.replace(
        check, status="failed", detail=f"passes, but was expected not: {why}"
    )


def _verdicts(
    name: str, rules: Mapping[str, _Rule], temporary: Path, settings: Mapping[str, str]
) -> dict[str, Verdict]:
    data = rehearsal.write_images(temporary / "images.npz")
    answer = probe(
        [name],
        recipe="small",
        overrides={manager.method_name(name): dict(settings)},
        data={"name": f"npz:{data}", "image_size": IMAGE_SIZE},
        seeds=[0, 1],
        runs_dir=temporary,
    )
    facts = answer["methods"][name]
    if facts["error"]:
        unread = "the card cannot be read" if "card" in rules else facts["error"]
        found = dict.fromkeys(rules, ("failed", unread))
        return found | ({"card": ("failed", facts["error"])} if "card" in rules else {})
    if facts["local"]:
        facts["plugin"] = str(Path(name).expanduser().absolute())
    track = rehearsal.track(data, facts["card"]["needs"].get("backbone") == "vit")
    planned = plan.plan(track, {facts["name"]: facts}, answer["data"], seeds=[0, 1])
    specs = {spec.spec["seed"]: spec for spec in planned}

    wanted = [run for run in RUNS if any(run in rule.runs for rule in rules.values())]
    with ThreadPoolExecutor(JOBS) as pool:
        parts = pool.map(
            lambda run: rehearsal.carry_out(run, specs[RUNS[run].seed], temporary), wanted
        )
        evidence = dict(zip(wanted, parts, strict=True))
    return {check: _verdict(rule, evidence) for check, rule in rules.items()}


def _verdict(rule: _Rule, evidence: Evidence) -> Verdict:
    for run in rule.runs:
        for part in evidence[run]:
            if part.status == "unsupported":
                return "skipped", f"n/a: {part.reason}"
            if part.status not in ("done", "stopped"):
                return "failed", f"the run {run!r} ended as {_ending(part)}"
    return rule.verdict(evidence)


def _is_floor(part: Part) -> bool:
    record = part.records[0]
    return record["floor"] and record["ended"] == 0


def _ending(part: Part) -> str:
    return f"{part.status}: {part.reason}" if part.reason else part.status


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:4])
    return f"{shown} and {len(names) - 4} more" if len(names) > 4 else shown
