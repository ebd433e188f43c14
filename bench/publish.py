"""Boards on disk: render them, tell whether they are current, publish results into them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench import (
    claims,
    cost_page,
    figures,
    leaderboard,
    ledger,
    pictures,
    sheets,
    training_flops,
)
from bench.beside import Beside
from bench.beside import read as read_beside
from bench.errors import UserError
from bench.page_files import Page, chosen_pages, read_pages, without_older, write_track
from bench.results import (
    TRACK_FILE,
    Result,
    read,
    write,
    write_text,
)
from bench.track import load_track, recipes_id, shipped
from bench.verify import verify

INDEX = "README.md"


def render_pages(
    pages: Sequence[Page],
    *,
    published: Mapping[str, Iterable[Result]] | None = None,
    current: Mapping[str, str] | None = None,
    engine: int | None = None,
    beside: Beside,
) -> dict[str, str]:
    """Return file name -> text of index and pages, without their pictures."""
    shown = ((page.track, page.results) for page in pages)
    files = {INDEX: leaderboard.render_index(shown, claims=beside.claims, costs=beside.costs)}
    for page in pages:
        name = page.track["id"]
        there = pictures.of_page(page, pages, beside)

        def drawn(file: str, there: Mapping[str, Any] = there) -> str:
            return file if file in there else ""

        files[leaderboard.page_name(name)] = leaderboard.render_track(
            page.track,
            page.results,
            published=(published or {}).get(name, ()),
            problems=page.problems,
            current=current,
            engine=engine,
            figure=pictures.figure_name(name) if pictures.cost_points(page) else "",
            flops_figure=pictures.flops_name(name)
            if pictures.flops_curves(page, pages, beside)
            else "",
            reproduced=beside.reproduced,
            ledger=beside.ledger,
            recipes=beside.recipes_of(page.track),
            tuning_figure=pictures.tuning_name(name)
            if pictures.tuning_curves(page, beside)
            else "",
            sheets=beside.sheets.get(name, ()),
            flops=beside.flops,
        )
    return files


def render_all(
    results_dir: Path,
    out_dir: Path,
    tracks: Sequence[Mapping[str, Any]] | None = None,
    *,
    published: Mapping[str, Iterable[Result]] | None = None,
    current: Mapping[str, str] | None = None,
    engine: int | None = None,
    beside: Beside | None = None,
    local: Mapping[str, str] | None = None,
) -> list[Path]:
    """Render a results folder's index, pages and pictures into a folder; return the files.

    Args:
        beside: what pages show besides results; by default what lies in `out_dir`.
        local: plugin files as they are today, see `without_older`.
    """
    pages = without_older(read_pages(Path(results_dir), tracks), local or {})
    beside = read_beside(Path(out_dir)) if beside is None else beside
    files = render_pages(pages, published=published, current=current, engine=engine, beside=beside)
    return _write_boards(Path(out_dir), pages, files, beside)


def _write_boards(
    out_dir: Path, pages: Sequence[Page], files: Mapping[str, str], beside: Beside
) -> list[Path]:
    """Write pages, and those pictures that show other rows than they should."""
    written = []
    for name, text in files.items():
        write_text(out_dir / name, text)
        written.append(out_dir / name)
    for page in pages:
        for name, (shown, draw) in pictures.of_page(page, pages, beside).items():
            if not ((out_dir / name).is_file() and _is_current(out_dir / name, shown)):
                write_text(out_dir / name, draw(shown))
            written.append(out_dir / name)
    return written + claims.write(out_dir) + cost_page.write(out_dir)


def _is_current(path: Path, points: Sequence[figures.Point | figures.Curve]) -> bool:
    return figures.figure_is_current(path.read_text(encoding="utf-8", errors="replace"), points)


def check(
    leaderboards_dir: Path,
    tracks: Sequence[Mapping[str, Any]] | None = None,
    *,
    current: Mapping[str, str] | None = None,
    engine: int | None = None,
) -> list[str]:
    """Return one line per way in which boards differ from what their results say."""
    folder = Path(leaderboards_dir)
    pages = read_pages(folder / "results", tracks)
    beside = read_beside(folder)
    files = render_pages(pages, current=current, engine=engine, beside=beside)
    differences = list(beside.problems)
    differences += [f"{page.track['id']}/{problem}" for page in pages for problem in page.problems]
    for page in pages:
        name = page.track["id"]
        found = ((result.run_id, verify(result, name)) for result in page.results)
        differences += [f"{name}/{run_id}.json: {fault}" for run_id, fault in found if fault]
        differences += _untuned(page, beside)
    unread = _unwritten(beside, pages, {page.track["id"]: page.results for page in pages})
    said = f"no line of {ledger.FILE} has its test read"
    differences += [f"{line['run_id']}.json: {said}" for line in unread]
    differences += claims.check(folder) + cost_page.check(folder)
    expected = {*files, *claims.names(folder), beside.costs}
    for name, text in files.items():
        path = folder / name
        if not path.is_file():
            differences.append(f"{name}: missing")
        elif path.read_bytes() != text.encode():
            differences.append(f"{name}: differs from its results")
    for page in pages:
        for name, (shown, _) in pictures.of_page(page, pages, beside).items():
            expected.add(name)
            if not (folder / name).is_file():
                differences.append(f"{name}: missing")
            elif not _is_current(folder / name, shown):
                differences.append(f"{name}: shows other rows than its page")
    found = {path.name for kind in ("*.md", "*.svg") for path in folder.glob(kind)}
    differences += [f"{name}: has no results" for name in sorted(found - expected)]
    return differences


def publish(
    runs_dir: Path,
    leaderboards_dir: Path,
    tracks: Sequence[str] | None = None,
    *,
    include_local: bool = False,
    force: bool = False,
    current: Mapping[str, str] | None = None,
    engine: int | None = None,
) -> list[Path]:
    """Copy finished results into the committed boards and render them; return the files written.

    All is verified and rendered before the first byte is written.

    Args:
        tracks: ids to publish; default: every one with results.
        include_local: also rows that only this machine has the code or the training data of:
            plugin files that are not installed, and checkpoints from elsewhere.
        force: replace published results of the same run that differ.

    Raises:
        UserError: a result is damaged, unfinished, contradicts itself or a published one.
    """
    sources = Path(runs_dir) / "results"
    target = Path(leaderboards_dir)
    pages = chosen_pages(sources, tracks)
    new = {
        page.track["id"]: [result for result in page.results if include_local or _is_shared(result)]
        for page in pages
    }
    pages = [page for page in pages if new[page.track["id"]] or page.problems]
    if not pages:
        raise UserError(
            f"{sources}: only rows of local plugin files or external checkpoints; "
            "--include-local publishes them"
        )
    faults = [f"{page.track['id']}/{problem}" for page in pages for problem in page.problems]
    for name, results in new.items():
        for result in results:
            path = target / "results" / name / f"{result.run_id}.json"
            found = verify(result, name) or _conflict(path, result, force=force)
            faults += [f"{name}/{result.run_id}.json: {found}"] if found else []
    kept = read_beside(target)
    for page in pages:
        faults += _untuned(replace(page, results=new[page.track["id"]]), kept)
    if faults:
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise UserError(f"nothing published: {faults[0]}{more}")

    after = {page.track["id"]: page for page in read_pages(target / "results")}
    for page in pages:
        name = page.track["id"]
        old = after.get(name, Page({}, [], []))
        merged = {result.run_id: result for result in [*old.results, *new[name]]}
        replaced = tuple(f"{result.run_id}.json:" for result in new[name])
        problems = [line for line in old.problems if not line.startswith(replaced)]
        after[name] = Page(page.track, list(merged.values()), problems)
    everything = [page for _, page in sorted(after.items())]
    beside = kept
    late = _unwritten(beside, pages, new)
    beside = replace(beside, ledger=[*beside.ledger, *late])
    drawn = sheets.planned(Path(runs_dir), [r for results in new.values() for r in results])
    shown = {
        track: tuple(sorted({*beside.sheets.get(track, ()), *drawn.get(track, ())}))
        for track in {*beside.sheets, *drawn}
    }
    counts = dict(beside.flops)
    for name, count in training_flops.read(Path(runs_dir)).items():
        if any(name == training_flops.key(r.spec) for results in new.values() for r in results):
            counts[name] = count
    beside = replace(beside, sheets=shown, flops=counts)
    files = render_pages(everything, current=current, engine=engine, beside=beside)
    written = []
    for line in late:
        ledger.append(target / ledger.FILE, line)
    for page in pages:
        folder = target / "results" / page.track["id"]
        write_track(folder, page.track)
        written.append(folder / TRACK_FILE)
        for result in new[page.track["id"]]:
            write(folder / f"{result.run_id}.json", result)
            written.append(folder / f"{result.run_id}.json")
    written += sheets.copy(target, drawn)
    if counts:
        training_flops.write(target, counts)
        written.append(target / training_flops.FILE)
    return written + _write_boards(target, everything, files, beside)


def _is_shared(result: Result) -> bool:
    """Return whether others can have a row's code and data: its plugin is installed."""
    return result.row.origin not in ("local", "external")


def kept_back(sources: Path, tracks: Sequence[str] | None) -> str:
    """Return a line on the runs that are published only if asked for, or "" if there are none."""
    every = [r for page in chosen_pages(sources, tracks) for r in page.results]
    names = sorted({result.method for result in every if not _is_shared(result)})
    count = sum(not _is_shared(result) for result in every)
    if not names:
        return ""
    return (
        f"left out: {count} runs of plugin files or checkpoints ({', '.join(names)}); "
        "--include-local publishes them"
    )


def _unwritten(
    beside: Beside, pages: Sequence[Page], new: Mapping[str, Sequence[Result]]
) -> list[dict[str, Any]]:
    """Return the ledger's lines of results that read a test split by another ledger, or none."""
    written = {line["run_id"] for line in beside.ledger}
    return [
        ledger.of_run(
            track=result.track,
            spec=result.spec,
            run_id=result.run_id,
            code=result.code.model_dump(),
            protocols=[key for key, e in result.evaluations.items() if e.test_reads],
            settings=[e.settings for e in result.evaluations.values() if e.test_reads],
            test_sha256=page.track.get("test_sha256", ""),
        )
        for page in pages
        for result in new[page.track["id"]]
        if result.run_id not in written
        and any(entry.test_reads for entry in result.evaluations.values())
    ]


def _untuned(page: Page, beside: Beside) -> list[str]:
    """Return a line for each run that says how many trials are behind its recipe, where the boards
    have another recipe or none: a row is ranked for that number."""
    name = page.track["id"]
    of = {"recipes": recipes_id(load_track(name))} if name in shipped() else {}
    known = {recipe.method: recipe for recipe in beside.recipes_of(of | dict(page.track))}
    lines = []
    for result in page.results:
        if result.row.variant or result.row.tuning in ("", "0") or not result.row.tuning.isdigit():
            continue
        recipe, config = known.get(result.method), result.spec.get("config", {})
        said = f"{name}/{result.run_id}.json: says {result.row.tuning} trials of tuning"
        if recipe is None:
            lines.append(f"{said}; no recipe of {result.method} lies beside the boards")
        elif len(recipe.trials) != int(result.row.tuning):
            lines.append(f"{said}; its recipe beside the boards has {len(recipe.trials)}")
        elif any(
            config.get(key) != value
            for key, value in recipe.config.items()
            if key != "warmup_epochs"  # which a plan cuts of a short run
        ):
            lines.append(f"{said}; its configuration is not that recipe's")
    return lines


def _conflict(path: Path, result: Result, *, force: bool) -> str:
    """Return why a result may not replace the published one of the same run, or ""."""
    if force or not path.exists():
        return ""
    try:
        same = read(path).content_sha256 == result.content_sha256
    except UserError:
        same = False
    return "" if same else "already published with other content; --force replaces it"
