"""Settings out of their range are refused before anything is trained."""

from __future__ import annotations

import pytest

from bench import evaluations
from bench.errors import UserError

PROBES = ("linear_probe", "linear_raw", "background_probe", "bn_recalibrated")
REFUSED = {
    "knn": [
        ({"k": []}, r"knn.k is \[\]; expected at least one number"),
        ({"k": ["a"]}, r"knn.k is \['a'\]; expected a list of whole numbers"),
        ({"k": [5.0]}, "expected a list of whole numbers"),
        ({"k": [True]}, "expected a list of whole numbers"),
        ({"k": [5, -1]}, r"knn.k is \[5, -1\]; expected each at least 1"),
        ({"k_beside": 0}, "knn.k_beside is 0; expected at least 1"),
        ({"temperature": 0.0}, "knn.temperature is 0.0; expected above 0"),
        ({"temperature": float("inf")}, "expected above 0"),
        ({"temperature": float("nan")}, "expected above 0"),
    ],
    "few_labels": [
        (
            {"labels_per_class": [5]},
            r"class is \[5\] and few_labels.draws \[25, 25, 25, 10\]; give both",
        ),
        ({"labels_per_class": [0], "draws": [3]}, "expected each at least 1"),
        ({"labels_per_class": [], "draws": []}, "expected at least one number"),
        ({"labels_per_class": [5, 5], "draws": [3, 4]}, "expected each K once"),
        ({"labels_per_class": [5], "draws": [256]}, "at least 1 and at most 255"),
        ({"labels_per_class": [5], "draws": ["a"]}, "expected a list of whole numbers"),
        ({"l2_few": -1.0}, "expected above 0"),
        ({"folds": 1}, "expected at least 2"),
        ({"l2_low": 1.0, "l2_high": 0.1}, "l2_low is 1; expected below l2_high, which is 0.1"),
        ({"l2_count": 0}, "expected at least 1"),
    ],
    "mlp_probe_spatial": [
        ({"rates": [0.1]}, "differ in length; give every rate its epoch"),
        ({"rates": [1]}, r"rates is \[1\]; expected a list of numbers with a point"),
        ({"until": [40, 20, 45, 50]}, "expected epochs that rise"),
        ({"batch_size": 1}, "expected at least 2"),
        ({"momentum": 0.0}, "expected above 0 and below 1"),
        ({"pooled_to": -1}, "expected at least 0"),
    ],
    "linear_probe_sgd": [
        ({"epochs": 0}, "expected at least 1"),
        ({"rate": -0.1}, "expected above 0"),
        ({"milestones": [-3]}, "expected each at least 1"),
        ({"smallest_crop": 1.5}, "expected above 0 and at most 1"),
        ({"momentum": 0.0, "nesterov": True}, "nesterov needs momentum, which is 0"),
    ],
    "finetune": [
        ({"rates": []}, "expected at least one number"),
        ({"rates": [0.1, 0.0]}, "expected each above 0"),
        ({"images_per_rate": 0}, "expected at least 1"),
        ({"batch_size": 1}, "expected at least 2"),
        ({"warmup": 1.5}, "expected at least 0 and at most 1"),
        ({"labels_per_class": -1}, "expected at least 0"),
    ],
    "bn_recalibrated": [({"images": 1}, "expected at least 2")],
}


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_a_setting_out_of_its_range_is_refused(name: str) -> None:
    for overrides, said in REFUSED[name]:
        with pytest.raises(UserError, match=said):
            evaluations.protocol(name, overrides)


@pytest.mark.parametrize("name", PROBES)
def test_every_linear_probe_refuses_what_it_cannot_solve(name: str) -> None:
    for overrides, said in (
        ({"l2_low": 1e-7, "l2_high": 1e-7}, "l2_low is 1e-07; expected below l2_high"),
        ({"l2_low": 0.0}, "l2_low is 0.0; expected above 0"),
        ({"l2_count": 0}, "l2_count is 0; expected at least 1"),
        ({"extend_decades": 0}, "extend_decades is 0; expected at least 1"),
        ({"max_iterations": 0}, "max_iterations is 0; expected at least 1"),
    ):
        with pytest.raises(UserError, match=f"^{name}.{said}"):
            evaluations.protocol(name, overrides)


@pytest.mark.parametrize("name", evaluations.NAMES)
def test_what_a_protocol_sets_itself_is_in_range(name: str) -> None:
    evaluations.protocol(name)


def test_lists_may_be_of_another_length_and_milestones_empty() -> None:
    found = evaluations.protocol("few_labels", {"labels_per_class": [3], "draws": [255]})
    assert found.settings["draws"] == [255]
    evaluations.protocol("linear_probe_sgd", {"milestones": []})


def test_neighbours_that_are_no_list_are_no_choice_of_one() -> None:
    assert evaluations.chooses("knn", {"k": [200]}) == ""
    assert evaluations.chooses("knn", {"k": 200}) == evaluations.chooses("knn", {})
