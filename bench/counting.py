"""Count the training FLOPs of published rows that lack them."""

from __future__ import annotations

from pathlib import Path

from bench import manager, session, training_flops
from bench.errors import UserError
from bench.page_files import Page, read_pages
from bench.track import shipped


def complete(leaderboards_dir: Path, runs_dir: Path) -> list[str]:
    """Count what the rows of shipped tracks lack, of methods that are installed; return what is
    said of those that could not be counted.

    A row whose configuration is no longer what the track would run stays without.
    """
    counts = training_flops.read(leaderboards_dir)
    said = []
    for page in read_pages(leaderboards_dir / "results"):
        lacking = {
            result.method
            for result in page.results
            if result.spec.get("backbone") is not None
            and result.row.role != "floor"
            and training_flops.key(result.spec) not in counts
        }
        known = sorted(lacking & set(manager.installed()))
        if known and page.track["id"] in shipped():
            found, problems = _count(page, known, leaderboards_dir, runs_dir)
            counts |= found
            said += problems
    if counts:
        training_flops.write(leaderboards_dir, counts)
    return said


def _count(
    page: Page, methods: list[str], leaderboards_dir: Path, runs_dir: Path
) -> tuple[dict[str, training_flops.Count], list[str]]:
    name = page.track["id"]
    try:
        prepared = session.prepare(
            ",".join(methods), track=name, runs_dir=runs_dir, leaderboards_dir=leaderboards_dir
        )
    except UserError as error:
        return {}, [f"{name}: {error}"]
    shown = {training_flops.key(result.spec) for result in page.results}
    wanted = [
        training
        for training in prepared.trained.values()
        if training_flops.key(training.spec) in shown
    ]
    found, problems = training_flops.count(wanted, {})
    return found, [f"{name}: {line}" for line in problems.values()]
