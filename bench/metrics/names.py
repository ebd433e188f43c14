"""What a measure of generated images is called in a column: the extractor is a part of it."""

from __future__ import annotations

from bench.errors import UserError

FID_EXTRACTOR = "inception"
FID_SAMPLES = 50_000
ENCODER = "encoder:"  # how an exported backbone is named: its folder and its weights, FOLDER@SHA
BESIDE = "_beside"  # how protocols end that look at the same with another extractor
MEMORISED = "memorised"  # how the stamp begins of samples that are copies of training images
LEAST_SAMPLES = 1000  # fewer only where the user insists, and then the column's name says so


def column_name(
    extractor: str,
    metric: str,
    samples: int,
    *,
    reference: int | None = None,
    allow_small: bool = False,
) -> str:
    """Return what a metric of so many samples is called in a column.

    `FID` is the Frechet distance (metric "FD") under Inception of 50,000 samples, `FID@N` that of
    any other number. Other distances name their extractor: `FD(efficientnet_lite0)`,
    `KID(inception)`; precision and its like are of the first distance's, as a page's legend says.
    What only `allow_small` lets pass is marked, with the numbers.

    Args:
        extractor: its name.
        metric: FD, FD64, KID, precision, ...
        samples: how many were generated.
        reference: images that they are compared with; as many as samples if it is not given.

    Raises:
        UserError: fewer than 1,000 samples, or another number of reference images, without
            `allow_small`.
    """
    reference = samples if reference is None else reference
    if metric == "FD" and extractor == FID_EXTRACTOR:
        name = "FID" if samples == FID_SAMPLES else f"FID@{samples}"
    else:
        name = f"{metric}({extractor})"
    mark = small_mark(samples, reference)
    if not mark:
        return name
    met = f"{samples} samples against {reference} images"
    if not allow_small:
        raise UserError(
            f"{name} of {met} is mostly bias; take {LEAST_SAMPLES} or more and as many of both, or "
            "say --allow-small, which then stands in the column's name"
        )
    return name + mark


def small_mark(samples: int, reference: int | None = None) -> str:
    """Return what a column's name says of numbers that only `allow_small` lets pass, else ""."""
    reference = samples if reference is None else reference
    if samples >= LEAST_SAMPLES and samples == reference:
        return ""
    return f" [allow-small: {samples} samples against {reference} images]"
