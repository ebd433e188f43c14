"""Result files: what is written is read, and nothing else is."""

from __future__ import annotations

import base64
import json
import os
import zlib

import numpy as np
import pytest
from pydantic import ValidationError
from synthetic_results import KNN, LINEAR, result

from bench import results
from bench.errors import UserError
from bench.identity import digest
from bench.packing import (
    pack_bits,
    pack_counts,
    pack_predictions,
    unpack_bits,
    unpack_counts,
    unpack_predictions,
)
from bench.results import (
    EvaluationEntry,
    add_evaluation,
    group,
    read,
    read_all,
    write,
)


def stored(folder, run=None):
    run = run or result("contrast_net", 0)
    path = folder / f"{run.run_id}.json"
    write(path, run)
    return path


def rewrite(path, change, *, rehash=True):
    """Change a stored document in place, with its content hash made right again."""
    document = json.loads(path.read_text())
    change(document)
    if rehash:
        document.pop("content_sha256", None)
        document["content_sha256"] = digest(document)
    path.write_text(json.dumps(document))


def test_what_is_written_is_read(tmp_path):
    run = result("contrast_net", 3, cost={"train_seconds": 0.1 + 0.2})
    again = read(stored(tmp_path, run))
    assert again.document() == run.document()
    assert again.cost.train_seconds == 0.1 + 0.2
    assert (again.method, again.seed, again.schema_version) == ("contrast_net", 3, 1)


def test_the_keys_are_those_of_schema_1(tmp_path):
    document = json.loads(stored(tmp_path).read_text())
    assert " ".join(sorted(document)) == (
        "artifacts attempts code content_sha256 cost data evaluations health losses machine reason "
        "row run_id schema spec status track"
    )
    assert " ".join(sorted(document["evaluations"][LINEAR])) == (
        "chosen correct id metrics predictions seconds settings stamps test_reads validation "
        "version"
    )


def test_the_content_hash_covers_everything_else(tmp_path):
    document = json.loads(stored(tmp_path).read_text())
    said = document.pop("content_sha256")
    assert said == digest(document)


def test_a_written_file_is_the_same_bytes_again(tmp_path):
    path = stored(tmp_path)
    before = path.read_bytes()
    write(path, read(path))
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(schema=2), "schema 2, this version reads 1"),
        (lambda d: d.pop("schema"), "schema None"),
        (lambda d: d.update(surprise=1), "surprise: Extra inputs"),
        (lambda d: d["row"].update(surprise=1), r"row\.surprise"),
        (lambda d: d["cost"].update(train_seconds="long"), r"cost\.train_seconds"),
        (lambda d: d.update(status="great"), "status"),
        (lambda d: d.update(run_id="../escape"), "run_id"),
        (lambda d: d.update(spec={}), "spec needs a method and a whole seed"),
        (lambda d: d["spec"].update(seed="0"), "whole seed"),
        (lambda d: d.pop("code"), "code: Field required"),
    ],
)
def test_documents_of_another_form_are_refused(tmp_path, change, message):
    path = stored(tmp_path)
    rewrite(path, change)
    with pytest.raises(UserError, match=message) as error:
        read(path)
    assert path.name in str(error.value)
    assert "\n" not in str(error.value)


def test_an_altered_number_is_refused(tmp_path):
    path = stored(tmp_path)
    rewrite(
        path, lambda d: d["evaluations"][LINEAR]["metrics"].update(best_top1=99.9), rehash=False
    )
    with pytest.raises(UserError, match="altered since it was written"):
        read(path)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[1]", b'{"schema": NaN}', b"\xff\xfe", b"[" * 100_000, b"null"]
)
def test_what_is_no_result_is_refused_in_one_line(tmp_path, content):
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"x\.json: ") as error:
        read(path)
    assert "\n" not in str(error.value)


def test_a_file_under_another_runs_name_is_refused(tmp_path):
    path = stored(tmp_path)
    with pytest.raises(UserError, match=f"holds the run {path.stem}"):
        read(path.rename(tmp_path / "other.json"))
    assert read((tmp_path / "other.json").rename(tmp_path / "result.json")).run_id == path.stem


def test_a_missing_file_is_said(tmp_path):
    with pytest.raises(UserError, match="cannot be read: No such file"):
        read(tmp_path / "none.json")


def test_numbers_that_are_not_finite_are_refused():
    with pytest.raises(ValidationError, match="finite"):
        result("contrast_net", 0, cost={"train_seconds": float("nan")})


def test_a_write_that_fails_leaves_the_old_file_alone(tmp_path, monkeypatch):
    path = stored(tmp_path)
    before = path.read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write(path, result("contrast_net", 0, 0.1))
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_a_write_syncs_the_file_before_and_the_folder_after_the_rename(tmp_path, monkeypatch):
    events = []
    real_fsync, real_replace = os.fsync, results.Path.replace

    def fsync(descriptor):
        kind = "folder" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "file"  # noqa: PTH112
        events.append(kind)
        real_fsync(descriptor)

    def replace(self, target):
        events.append("rename")
        return real_replace(self, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(results.Path, "replace", replace)
    stored(tmp_path)
    assert events == ["file", "rename", "folder"]


def test_read_all_names_what_it_leaves_out(tmp_path):
    kept = [stored(tmp_path, result("contrast_net", seed)).stem for seed in (2, 0, 1)]
    damaged = stored(tmp_path, result("queue_net", 0))
    damaged.write_bytes(damaged.read_bytes()[:100])
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "folder.json").mkdir()
    (tmp_path / ".left.json.tmp").write_text("half")
    (tmp_path / "track.json").write_text("{}")
    found, problems = read_all(tmp_path)
    assert [run.run_id for run in found] == sorted(kept)
    assert [line.split(":")[0] for line in problems] == [
        "folder.json",
        "notes.txt",
        damaged.name,
    ]
    assert not any(str(tmp_path) in line for line in problems)


def test_a_missing_folder_has_no_results(tmp_path):
    assert read_all(tmp_path / "none") == ([], [])


def test_an_evaluation_is_added_beside_the_others(tmp_path):
    path = stored(tmp_path)
    entry = EvaluationEntry(id="few_labels", version=1, metrics={"k1_top1": 41.5})
    changed = add_evaluation(path, "abc123abc123", entry)
    assert set(read(path).evaluations) == {LINEAR, KNN, "abc123abc123"}
    assert read(path).evaluations["abc123abc123"] == entry
    assert changed.content_sha256 == read(path).content_sha256


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 500])
def test_packed_answers_come_back(count):
    rng = np.random.default_rng(count)
    classes, truths = rng.integers(0, 65536, count), rng.integers(0, 2, count).astype(bool)
    assert np.array_equal(unpack_predictions(pack_predictions(classes), count), classes)
    assert np.array_equal(unpack_bits(pack_bits(truths), count), truths)
    counts = rng.integers(0, 256, count)
    assert np.array_equal(unpack_counts(pack_counts(counts), count), counts)


@pytest.mark.parametrize("counts", [[-1], [256], [0.5], [[1]]])
def test_what_is_no_count_is_not_packed(counts):
    with pytest.raises(ValueError, match="counts"):
        pack_counts(np.array(counts))


def test_a_result_from_before_shares_keeps_its_bytes_and_a_share_is_stored(tmp_path):
    path = stored(tmp_path)
    before = path.read_bytes()
    assert b"shares" not in before
    write(path, read(path))
    assert path.read_bytes() == before
    shares, draws = {"k1_top1": pack_counts(np.arange(4))}, {"k1_top1": 3}
    entry = EvaluationEntry(id="few_labels", version=1, shares=shares, draws=draws)
    add_evaluation(path, "abc123abc123", entry)
    assert read(path).evaluations["abc123abc123"] == entry


def test_the_packed_form_is_the_schemas():
    raw = zlib.decompress(base64.b64decode(pack_predictions(np.array([1, 258]))))
    assert raw == b"\x01\x00\x02\x01"
    assert zlib.decompress(base64.b64decode(pack_bits(np.array([True, False, True])))) == b"\xa0"


@pytest.mark.parametrize("classes", [[-1], [65536], [0.5], [[1]]])
def test_what_is_no_class_index_is_not_packed(classes):
    with pytest.raises(ValueError):
        pack_predictions(np.array(classes))


def test_answers_that_are_no_truths_are_not_packed():
    with pytest.raises(ValueError, match="expected bool"):
        pack_bits(np.array([0, 1]))


@pytest.mark.parametrize(
    "text",
    [
        "not base64!",
        base64.b64encode(b"not zlib").decode(),
        pack_bits(np.ones(8, bool)),
        pack_bits(np.ones(24, bool)),
        base64.b64encode(zlib.compress(bytes(2))[:-2]).decode(),
        base64.b64encode(zlib.compress(bytes(50_000_000))).decode(),
    ],
    ids=["base64", "zlib", "short", "long", "cut", "bomb"],
)
def test_damaged_answers_are_refused(text):
    with pytest.raises(UserError, match="packed values"):
        unpack_bits(text, 16)


def test_seeds_of_one_configuration_share_a_group():
    runs = [result("contrast_net", seed) for seed in range(7)]
    assert len({group(run) for run in runs}) == 1
    assert group(result("contrast_net", 0, config={"temperature": 0.5})) != group(runs[0])
    assert group(result("queue_net", 0)) != group(runs[0])


def test_the_module_imports_no_pandas_and_no_torch():
    import subprocess
    import sys

    code = (
        "import sys, bench.results, bench.leaderboard; "
        "print([m for m in ('torch', 'pandas', 'sklearn', 'matplotlib') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
