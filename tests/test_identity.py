"""Canonical JSON, hashes and addressed random streams."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import subprocess
import sys

import pytest

from bench import identity


def test_canonical_json_has_sorted_keys_and_no_spaces():
    value = {"b": [1, 2.5, None, True], "a": {"é": "x y"}}
    assert identity.canonical_json(value) == '{"a":{"é":"x y"},"b":[1,2.5,null,true]}'


def test_canonical_json_does_not_depend_on_the_order_of_keys():
    items = [("a", 1), ("b", {"x": 1, "y": 2}), ("c", [])]
    texts = {identity.canonical_json(dict(order)) for order in itertools.permutations(items)}
    assert len(texts) == 1


@pytest.mark.parametrize("number", [0.1, 1e-7, 1e22, 1 / 3, -0.0, 5e-324])
def test_floats_survive(number):
    assert repr(json.loads(identity.canonical_json(number))) == repr(number)


@pytest.mark.parametrize("value", [float("nan"), [float("inf")], {"a": {"b": -float("inf")}}])
def test_numbers_that_are_not_finite_are_refused(value):
    with pytest.raises(ValueError):
        identity.canonical_json(value)


@pytest.mark.parametrize("value", [{1: "a"}, {"a": [{None: 1}]}, {"a": ({2.5: 1},)}, {"a": {1}}])
def test_what_has_no_json_form_is_refused(value):
    with pytest.raises(TypeError):
        identity.canonical_json(value)


def test_digest_is_the_sha256_of_the_canonical_text():
    value = {"b": 1, "a": "é"}
    expected = hashlib.sha256('{"a":"é","b":1}'.encode()).hexdigest()
    assert identity.digest(value) == expected


def test_run_id_names_method_and_seed_and_follows_every_part_of_the_spec():
    spec = {"method": "mine", "seed": 3, "config": {"a": 1.0}, "data": {"sha256": "x"}}
    found = identity.run_id(spec)
    assert found == f"mine-s3-{identity.digest(spec)[:10]}"
    for change in ({"config": {"a": 2.0}}, {"data": {"sha256": "y"}}, {"threads": 1}):
        assert identity.run_id(spec | change) != found


def test_protocol_hash_follows_id_version_and_settings():
    hashes = {
        identity.protocol_hash("knn", 1, {"k": 20}),
        identity.protocol_hash("knn", 2, {"k": 20}),
        identity.protocol_hash("knn", 1, {"k": 21}),
        identity.protocol_hash("probe", 1, {"k": 20}),
    }
    assert len(hashes) == 4
    assert all(len(text) == 12 and set(text) <= set("0123456789abcdef") for text in hashes)


def test_stream_is_the_first_63_bits_of_the_addresss_sha256():
    digest = hashlib.sha256(b'[7,"views",12]').hexdigest()
    assert identity.stream(7, "views", 12) == int(digest[:16], 16) // 2


def test_streams_of_different_addresses_differ_and_fit_a_generator_seed():
    addresses = [
        (seed, role, *index)
        for seed in range(3)
        for role in identity.ROLES
        for index in ((), (0,), (1,), (0, 0), (0, 1), (1, 0), ("knn", 1))
    ]
    streams = [identity.stream(*address) for address in addresses]
    assert len(set(streams)) == len(addresses)
    assert all(0 <= stream < 2**63 for stream in streams)


def test_streams_do_not_run_together():
    assert identity.stream(1, "forward", 11, 1) != identity.stream(1, "forward", 1, 11)
    assert identity.stream(11, "order", 1) != identity.stream(1, "order", 11)


def test_an_unknown_role_is_refused():
    with pytest.raises(ValueError, match=r"view.*init, order, views"):
        identity.stream(0, "view", 1)


def test_hashes_do_not_depend_on_pythons_hash_seed():
    code = "from bench import identity; print(identity.digest({'b': {'x': 1}, 'a': 2}))"
    texts = {
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert texts == {identity.digest({"a": 2, "b": {"x": 1}}) + "\n"}


def test_file_sha256_is_that_of_the_bytes(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"\0\r\n" * 100_000)
    assert identity.file_sha256(path) == hashlib.sha256(b"\0\r\n" * 100_000).hexdigest()
