"""Tracks from TOML, and the runs that they ask for."""

from __future__ import annotations

import dataclasses
import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

from bench import ENGINE, identity, plan, recipes, track
from bench.errors import UnknownName, UserError
from bench.manager import RAW_PIXELS

ROOT = Path(__file__).parents[1]
PUBLISHED = sorted(path for path in (ROOT / "leaderboards" / "results").iterdir() if path.is_dir())
SHIPPED = (track.SHIPPED / "digits.toml").read_text()


def write(folder: Path, text: str, name: str = "mine.toml") -> str:
    path = folder / name
    path.write_text(text)
    return str(path)


def method(**changes: Any) -> dict[str, Any]:
    config = {"temperature": 0.1, "head": "mlp", "milestones": [0.6, 0.8]}
    card = {
        "title": "Mine",
        "paper": "https://example.org",
        "family": "contrastive",
        "role": "method",
        "departs": "nothing",
        "uses_labels": False,
        "input": "rgb",
        "defaults": config | {"temperature": 0.5},
        "recipes": {"small": config},
    }
    return {
        "card": card,
        "config": config,
        "sha256": "c0de",
        "distribution": "some-methods",
        "version": "1.0",
        "local": False,
        "error": None,
    } | changes


def data(train: int = 1168, **facts: Any) -> dict[str, Any]:
    known = {"name": "digits", "sha256": "da7a", "test_sha256": "7e57", "sizes": {}} | facts
    splits = {str(s): {"sha256": f"split{s % 5}", "train": train, "val": 129} for s in range(10)}
    return {"facts": known, "splits": splits}


def runs(chosen: plan.Track | None = None, **changes: Any) -> list[plan.RunSpec]:
    given: dict[str, Any] = {"methods": {"mine": method()}, "data": data(), "seeds": [0]} | changes
    return plan.plan(
        chosen or plan.load_track("digits"), given.pop("methods"), given.pop("data"), **given
    )


def test_the_shipped_tracks_load_under_their_own_names():
    assert {"digits", "fashion-mnist"} <= set(plan.shipped())
    for name in plan.shipped():
        assert plan.load_track(name).id == name
    assert plan.load_track("digits").smoke
    assert plan.load_track("digits").seeds == (0, 1, 2, 3, 4)


def test_the_shipped_evaluations_exist():
    from bench import evaluations

    for name in plan.shipped():
        assert set(plan.load_track(name).evaluations) <= set(evaluations.NAMES)


def test_a_copy_of_a_shipped_file_is_the_shipped_track(tmp_path):
    path = write(tmp_path, "# a remark\n" + SHIPPED, "digits.toml")
    assert plan.load_track(path) == plan.load_track("digits")


def test_a_changed_copy_and_another_name_get_ids_of_their_own(tmp_path):
    changed = plan.load_track(
        write(tmp_path, SHIPPED.replace("epochs = 24", "epochs = 3"), "digits.toml")
    )
    renamed = plan.load_track(write(tmp_path, SHIPPED, "mine.toml"))
    assert changed.id.startswith("digits~")
    assert renamed.id.startswith("mine~")
    assert len(changed.id) == len("digits~") + 6


def test_an_id_depends_on_content_and_not_on_layout(tmp_path):
    first = plan.load_track(write(tmp_path, SHIPPED, "mine.toml")).id
    assert plan.load_track(write(tmp_path, "\n# note\n" + SHIPPED, "mine.toml")).id == first
    changed = SHIPPED.replace('recipe = "small"', 'recipe = "cifar10"')
    assert plan.load_track(write(tmp_path, changed, "mine.toml")).id != first


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("batch_size", "batchsize", "no key 'batchsize'; did you mean batch_size"),
        ("image_size", "imagesize", r"no key of \[data\] 'imagesize'; did you mean image_size"),
        ("kernel = 3", "kernal = 3", r"no key of \[backbone.stem\] 'kernal'; did you mean kernel"),
        ("epochs = 24", "epoch = 24", r"no key of \[budget\] 'epoch'; did you mean epochs"),
        ("epochs = 24", "", "exactly one of epochs, steps, images"),
        ("epochs = 24", "epochs = 24\nsteps = 3", "exactly one of epochs, steps, images"),
        ("epochs = 24", "epochs = 0", "budget.epochs: .*got 0"),
        ("epochs = 24", "epochs = 2.5", "budget.epochs: .*got 2.5"),
        ("epochs = 24", "epochs = true", "budget.epochs: .*got True"),
        ("batch_size = 128", 'batch_size = "128"', "batch_size: .*got '128'"),
        ("batch_size = 128", "", "batch_size: .*required"),
        ('precision = "fp32"', 'precision = "fp8"', "precision: .*got 'fp8'"),
        ("seeds = [0, 1", "seeds = [1, 1", "seeds must be distinct"),
        ("seeds = [0, 1", "seeds = [-1, 1", "seeds must be distinct and not negative"),
        ("stride = 2", "stride = 3", "backbone.stem.stride.*got 3"),
        ("layers = [1, 1, 1, 1]", "layers = nan", "JSON|nan|compliant"),
        ("layers = [1, 1, 1, 1]", "layers = 2020-01-01", "JSON"),
        ("image_size = 32", "image_size = 4", "data.image_size.*got 4"),
        ("[data]", "[data", "is not TOML"),
        ("smoke = true", "smoke = true\nsmoke = false", "is not TOML"),
    ],
)
def test_a_bad_track_file_is_one_line(tmp_path, old, new, message):
    assert old in SHIPPED
    path = write(tmp_path, SHIPPED.replace(old, new, 1))
    with pytest.raises(UserError, match=message) as caught:
        plan.load_track(path)
    assert "\n" not in str(caught.value)
    assert path in str(caught.value)


def test_a_file_that_cannot_be_read_is_one_line(tmp_path):
    (tmp_path / "latin.toml").write_bytes(b'title = "\xe9"')
    for path in (tmp_path / "latin.toml", tmp_path / "none.toml", tmp_path / "Bad Name.toml"):
        with pytest.raises(UserError, match="track file"):
            plan.load_track(str(path))
    with pytest.raises(UserError, match="track file"):
        plan.load_track(str(tmp_path))


def test_an_unknown_track_is_answered_with_the_nearest():
    with pytest.raises(UnknownName, match="no track 'digit'; did you mean digits"):
        plan.load_track("digit")


def test_options_that_change_nothing_keep_the_track():
    standard = plan.load_track("digits")
    assert plan.override(standard) == standard
    assert plan.override(standard, epochs=24, batch_size=128, backbone="resnet18") == standard


@pytest.mark.parametrize(
    "change",
    [
        {"dataset": "fashion-mnist"},
        {"backbone": "resnet10t"},
        {"image_size": 64},
        {"epochs": 2},
        {"batch_size": 64},
        {"limit": 500},
        {"precision": "bf16"},
        {"threads": 2},
        {"chunk": 32},
        {"checkpointing": True},
        {"compile": True},
    ],
)
def test_every_option_that_changes_a_track_changes_its_id(change):
    standard = plan.load_track("digits")
    changed = plan.override(standard, **change)
    assert changed.id.startswith("digits~")
    again = plan.override(changed, **change)
    assert again == changed


def test_options_out_of_range_are_one_line():
    for change in ({"epochs": 0}, {"batch_size": 1}, {"limit": 0}, {"precision": "fp8"}):
        with pytest.raises(UserError, match="options: "):
            plan.override(plan.load_track("digits"), **change)


def test_another_backbone_loses_the_arguments_and_keeps_the_stem():
    standard = plan.load_track("digits")
    convolutional = plan.override(standard, backbone="resnet10t").backbone
    assert convolutional == {"name": "resnet10t", "args": {}, "stem": standard.backbone["stem"]}
    patches = plan.override(standard, backbone="vit_tiny_patch16_224", image_size=64).backbone
    assert patches == {"name": "vit_tiny_patch16_224", "args": {"patch_size": 8}, "stem": None}
    assert plan.override(standard, backbone="vitamin_small_224").backbone["stem"] is not None


@pytest.mark.parametrize(
    ("name", "size", "patch"),
    [
        ("vit_small_patch16_224", 224, 16),
        ("vit_small_patch14_dinov2", 224, 14),
        ("vit_small_patch16_224", 100, 10),
        ("vit_small_patch16_224", 64, 8),
        ("vit_base_patch8_224", 224, 8),
        ("test_vit", 32, 4),
        ("test_vit", 28, 2),
        ("test_vit", 11, 1),
    ],
)
def test_a_transformer_keeps_its_patches_where_enough_of_them_fit(name, size, patch):
    chosen = plan.override(plan.load_track("digits"), backbone=name, image_size=size)
    assert chosen.backbone["args"] == {"patch_size": patch}
    assert size % patch == 0


def test_stem_and_arguments_of_a_backbone_can_be_said():
    standard = plan.load_track("digits")
    swin = plan.override(standard, backbone="swin_tiny_patch4_window7_224", stem="none")
    assert swin.backbone == {"name": "swin_tiny_patch4_window7_224", "args": {}, "stem": None}
    plain = plan.override(standard, backbone="resnet18", stem="7x2+pool", backbone_args={"a": 1})
    assert plain.backbone["stem"] == {"kernel": 7, "stride": 2, "max_pool": True}
    assert plain.backbone["args"] == standard.backbone["args"] | {"a": 1}
    assert plan.override(standard, stem="3x2").id == "digits"
    vit = plan.override(standard, backbone="test_vit", backbone_args={"patch_size": 2, "depth": 1})
    assert vit.backbone["args"] == {"patch_size": 2, "depth": 1}
    for wrong in ("no", "3", "3x2+", "3x2 +pool"):
        with pytest.raises(UserError, match="expected none, or kernel and stride as in 3x2"):
            plan.override(standard, stem=wrong)
    with pytest.raises(UserError, match="stride"):
        plan.override(standard, stem="3x4")


def test_a_data_set_with_a_path_is_known_by_its_content(tmp_path):
    standard = plan.load_track("digits")
    here = plan.override(standard, dataset="npz:/here/faces.npz")
    there = plan.override(standard, dataset="npz:/there/faces.npz")
    facts = {"sha256": "a", "test_sha256": "b"}
    pinned = plan.pin_data(here, facts | {"name": "npz:/here/faces.npz"})
    assert pinned.data["name"] == "npz:faces.npz"
    assert pinned == plan.pin_data(there, facts | {"name": "npz:/there/faces.npz"})
    for change in ({"sha256": "c"}, {"test_sha256": "c"}):
        assert plan.pin_data(here, facts | {"name": "npz:/here/faces.npz"} | change) != pinned
    assert plan.pin_data(standard, facts | {"name": "digits"}) == standard


def test_the_floors_and_the_reference_join_each_board_once():
    standard = plan.load_track("digits")
    names = plan.with_floors(standard, ["mine", standard.floors[-1]])
    assert names == [*standard.floors, "mine", standard.reference]
    bare = dataclasses.replace(standard, floors=(), reference=None)
    assert plan.with_floors(bare, ["mine"]) == ["mine"]


def test_a_run_has_the_spec_of_the_contract():
    (run,) = runs()
    assert run.spec == {
        "schema": 1,
        "method": "mine",
        "config": {"temperature": 0.1, "head": "mlp", "milestones": [0.6, 0.8]},
        "seed": 0,
        "data": {"name": "digits", "sha256": "da7a", "split": "split0"},
        "image_size": 32,
        "backbone": {
            "name": "resnet18",
            "args": {"layers": [1, 1, 1, 1], "channels": [16, 32, 64, 128]},
            "stem": {"kernel": 3, "stride": 2, "max_pool": False},
        },
        "budget": {"steps": 24 * 9},
        "batch_size": 128,
        "precision": "fp32",
        "threads": 1,
    }
    assert run.run_id == identity.run_id(run.spec)
    assert (run.track, run.plugin, run.dataset) == ("digits", "mine", "digits")
    assert run.code == {
        "plugin_sha256": "c0de",
        "distribution": "some-methods",
        "version": "1.0",
        "engine": ENGINE,
    }
    assert {entry["name"]: entry["overrides"] for entry in run.evaluations} == {
        "linear_probe": {},
        "knn": {},
        "few_labels": {},
        "finetune": {"images_per_rate": 5000},
    }


def test_rows_fit_the_result_schema():
    from bench.results import Code, Row

    for name, chosen in (("mine", method()), (RAW_PIXELS, plan.RAW_PIXELS_METHOD)):
        (run,) = runs(methods={name: chosen})
        assert Row.model_validate(run.row).model_dump() == run.row
        assert Code.model_validate(run.code).model_dump() == run.code


def test_runs_go_seed_by_seed():
    found = runs(methods={RAW_PIXELS: plan.RAW_PIXELS_METHOD, "mine": method()}, seeds=[0, 7])
    assert [(r.spec["seed"], r.spec["method"]) for r in found] == [
        (0, RAW_PIXELS),
        (0, "mine"),
        (7, RAW_PIXELS),
        (7, "mine"),
    ]
    assert found[3].spec["data"]["split"] == "split2"
    assert len({run.run_id for run in found}) == 4


def test_raw_pixels_has_no_backbone_and_no_steps():
    (run,) = runs(methods={RAW_PIXELS: plan.RAW_PIXELS_METHOD}, device="cuda")
    assert (run.spec["backbone"], run.spec["budget"], run.spec["config"]) == (
        None,
        {"steps": 0},
        {},
    )
    assert run.plugin is None
    assert (run.row["role"], run.row["origin"], run.row["variant"]) == ("floor", "floor", "")


def test_a_local_file_is_named_by_its_hash_too():
    installed, local = (runs(methods={"mine": method(local=flag)})[0] for flag in (False, True))
    assert local.spec["local"] == "c0de"
    assert "local" not in installed.spec
    assert (installed.row["origin"], local.row["origin"]) == ("installed", "local")
    (other,) = runs(methods={"mine": method(local=True, sha256="beef")})
    assert other.run_id != local.run_id
    (moved,) = runs(methods={"mine": method(local=True, plugin="/there/mine.py")})
    assert (moved.plugin, moved.run_id) == ("/there/mine.py", local.run_id)


@pytest.mark.parametrize(
    ("budget", "num_images", "batch", "steps"),
    [
        ({"epochs": 3}, 100, 32, 9),
        ({"epochs": 1}, 32, 32, 1),
        ({"steps": 7}, 100, 32, 7),
        ({"images": 100}, 50, 32, 3),
    ],
)
def test_a_budget_becomes_whole_steps(budget, num_images, batch, steps):
    assert plan.total_steps(budget, num_images, batch) == steps


def test_a_batch_larger_than_the_training_set_or_budget_is_refused():
    for budget in ({"epochs": 3}, {"steps": 3}, {"images": 300}):
        with pytest.raises(UserError, match="batch size 64 is larger than the 63 training images"):
            plan.total_steps(budget, 63, 64)
    with pytest.raises(UserError, match="less than one batch"):
        plan.total_steps({"images": 63}, 100, 64)
    with pytest.raises(UserError, match="128 is larger than the 100 training images"):
        runs(plan.override(plan.load_track("digits"), limit=100))


def test_a_limit_stands_in_the_spec_only_where_it_bites():
    standard = plan.load_track("digits")
    (few,) = runs(plan.override(standard, limit=300))
    (all_,) = runs(plan.override(standard, limit=5000))
    assert few.spec["data"]["limit"] == 300
    assert few.spec["data"]["drawn"] == "limit/1"
    assert few.spec["budget"]["steps"] == 24 * 2
    assert all_.spec == runs()[0].spec
    assert all_.track != "digits"


def test_what_is_not_identity_does_not_change_the_run_id():
    standard = plan.load_track("digits")
    renamed = dataclasses.replace(standard, id="other~123456", evaluations={"knn": {}}, jobs=9)
    assert runs(renamed)[0].run_id == runs()[0].run_id
    assert runs(processes=2)[0].run_id == runs()[0].run_id


def test_the_folder_of_a_data_set_does_not_change_the_run_id():
    standard = plan.load_track("digits")
    found = [
        runs(
            plan.override(standard, dataset=f"npz:{folder}/faces.npz"),
            data=data(name=f"npz:{folder}/faces.npz"),
        )[0]
        for folder in ("/here", "/there")
    ]
    assert found[0].run_id == found[1].run_id
    assert found[0].track == found[1].track
    assert found[0].spec["data"]["name"] == "npz:faces.npz"
    assert [run.dataset for run in found] == ["npz:/here/faces.npz", "npz:/there/faces.npz"]


def test_a_batch_that_processes_cannot_share_is_refused():
    with pytest.raises(UserError, match="cannot be shared by 3 processes"):
        runs(processes=3)


def test_a_row_names_its_variant_and_its_recipe():
    changed = method()["config"] | {"temperature": 0.5, "head": "none", "milestones": [0.5]}
    (run,) = runs(methods={"mine": method(config=changed)})
    assert run.row["variant"] == "head=none, milestones=[0.5], temperature=0.5"
    assert run.row["recipe"] == "small"
    assert runs()[0].row["variant"] == ""


def test_a_card_without_the_recipe_runs_its_defaults():
    chosen = method()
    card = chosen["card"] | {"recipes": {}}
    (run,) = runs(methods={"mine": chosen | {"card": card, "config": card["defaults"]}})
    assert (run.row["recipe"], run.row["variant"]) == ("defaults", "")


@pytest.mark.parametrize(
    ("text", "seeds"),
    [("3", [0, 1, 2]), ("1", [0]), ("0,1,2", [0, 1, 2]), ("7,", [7]), (" 4 , 2 ", [4, 2])],
)
def test_seeds_are_a_number_or_a_list(text, seeds):
    assert plan.parse_seeds(text) == seeds


@pytest.mark.parametrize(
    "text", ["", "0", "-1", "1,-2", "1,1", "a", "1.5", "0,,1", ",", "101", "١", "1e3"]
)
def test_other_seeds_are_refused(text):
    with pytest.raises(UserError, match="--seeds"):
        plan.parse_seeds(text)


def test_settings_are_grouped_by_method():
    texts = ["mine.temperature=0.5", "mine.tag=a=b.c", "other.head="]
    assert plan.parse_settings(texts, ["mine", "other"]) == {
        "mine": {"temperature": "0.5", "tag": "a=b.c"},
        "other": {"head": ""},
    }


@pytest.mark.parametrize("text", ["temperature=1", "mine.temperature", "=1", "mine.=1", "a b.c=1"])
def test_settings_of_another_form_are_refused(text):
    with pytest.raises(UserError, match=r"expected METHOD\.FIELD=VALUE"):
        plan.parse_settings([text], ["mine"])


def test_settings_of_methods_that_do_not_run_and_double_settings_are_refused():
    with pytest.raises(UnknownName, match="did you mean mine"):
        plan.parse_settings(["mien.a=1"], ["mine"])
    with pytest.raises(UserError, match=r"gives mine\.a twice"):
        plan.parse_settings(["mine.a=1", "mine.a=2"], ["mine"])


def test_epochs_and_limit_count_the_unlabeled_images_where_there_are_any():
    """Methods with labels see fewer images and take as many steps."""
    unlabeled = data(sizes={"unlabeled": 12_800})
    for uses_labels in (False, True):
        changed = method()
        changed["card"]["uses_labels"] = uses_labels
        (run,) = runs(data=unlabeled, methods={"mine": changed})
        assert run.spec["budget"]["steps"] == 24 * 100
        assert "limit" not in run.spec["data"]
    chosen = plan.override(plan.load_track("digits"), limit=1_280)
    (limited,) = runs(chosen, data=unlabeled)
    assert limited.spec["budget"]["steps"] == 24 * 10
    assert limited.spec["data"]["limit"] == 1_280


def test_a_store_size_stands_in_the_spec_only_where_images_are_stored_larger():
    standard = plan.load_track("digits")
    assert "store_size" not in runs(standard)[0].spec["data"]
    larger = dataclasses.replace(standard, data=standard.data | {"store_size": 40})
    assert runs(larger)[0].spec["data"]["store_size"] == 40
    assert runs(larger)[0].spec["image_size"] == 32
    assert runs(larger)[0].run_id != runs(standard)[0].run_id


def test_parity_stands_in_the_spec_only_where_it_is_asked_for():
    standard = plan.load_track("digits")
    assert "parity" not in runs(standard)[0].spec["data"]
    assert runs(dataclasses.replace(standard, parity=True))[0].spec["data"]["parity"] is True


def test_ways_to_save_memory_stand_in_the_specs_of_those_who_go_them():
    standard = plan.load_track("digits")
    floor, reference = ({"card": method()["card"] | {"role": r}} for r in ("floor", "ceiling"))
    everyone = {
        RAW_PIXELS: plan.RAW_PIXELS_METHOD,
        "floor": method(**floor),
        "reference": method(**reference),
        "mine": method(),
    }
    usual = runs(methods=everyone)
    for run in usual:
        assert not {"chunk", "checkpointing", "compile"} & set(run.spec)
    saving = runs(plan.override(standard, chunk=32, checkpointing=True), methods=everyone)
    added = [
        {key: value for key, value in run.spec.items() if key not in before.spec}
        for run, before in zip(saving, usual, strict=True)
    ]
    assert added == [{}, {}, {"checkpointing": True}, {"chunk": 32, "checkpointing": True}]
    same = [run.run_id == before.run_id for run, before in zip(saving, usual, strict=True)]
    assert same == [True, True, False, False]
    quick = runs(plan.override(standard, compile=True), methods=everyone)
    assert [run.spec.get("compile") for run in quick] == [None, None, True, True]
    (sixteen,) = runs(plan.override(standard, chunk=16))
    (chunked,) = runs(plan.override(standard, chunk=32))
    assert sixteen.run_id != chunked.run_id


@pytest.mark.parametrize(
    ("chunk", "message"),
    [
        (48, "options: chunk must divide the batch of 128 images, got 48"),
        (256, "options: chunk must divide the batch of 128 images, got 256"),
        (1, "options: chunk: .*got 1"),
    ],
)
def test_a_chunk_that_does_not_divide_the_batch_is_one_line(chunk, message):
    with pytest.raises(UserError, match=message) as caught:
        plan.override(plan.load_track("digits"), chunk=chunk)
    assert "\n" not in str(caught.value)


def test_a_chunk_that_processes_cannot_share_is_refused():
    chosen = plan.override(plan.load_track("digits"), chunk=2)
    with pytest.raises(UserError, match="chunk 2 cannot be shared by 4 processes"):
        runs(chosen, processes=4)


@pytest.mark.parametrize("folder", PUBLISHED, ids=lambda folder: folder.name)
def test_published_runs_are_planned_under_their_ids(folder):
    """What was added to tracks and specs later says nothing in plans that do not ask for it."""
    chosen = plan.load_track(folder.name)
    found = [json.loads(path.read_text()) for path in sorted(folder.glob("*-s*.json"))]
    assert len(found) >= 5
    for result in found:
        spec, row = result["spec"], result["row"]
        if spec["backbone"] is None:
            continue
        card = method()["card"] | {key: row[key] for key in ("role", "uses_labels")}
        config = spec["config"]
        given = method(card=card, config=config) | {"from": config}
        if chosen.is_open:  # what a budget of FLOPs buys is counted elsewhere
            chosen = dataclasses.replace(
                chosen, division="closed", max_parameters=None, budget={"steps": 1}
            )
        if "steps" in chosen.budget:
            chosen = dataclasses.replace(chosen, budget={"steps": spec["budget"]["steps"]})
        known = data(result["data"]["train_images"], **spec["data"])
        known["splits"] = {
            spec["seed"]: known["splits"]["0"] | {"sha256": spec["data"]["split"]},
        }
        planned = runs(chosen, methods={spec["method"]: given}, data=known, seeds=[spec["seed"]])
        assert [run.run_id for run in planned] == [result["run_id"]]


@pytest.mark.parametrize("folder", PUBLISHED, ids=lambda folder: folder.name)
def test_published_recipes_are_of_their_tracks(folder):
    """A recipe whose track hashes to something else would be passed over in silence."""
    name = plan.load_track(folder.name).recipes_of or folder.name
    places = sorted((folder.parents[1] / recipes.FOLDER / name).glob("*.toml"))
    assert places
    for place in places:
        written = tomllib.loads(place.read_text())
        assert written["track_sha256"] == recipes.training_sha256(plan.load_track(name))
