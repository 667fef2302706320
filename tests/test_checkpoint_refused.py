"""What is no checkpoint is refused by the name of the element and the reason, and harms nothing."""

import json
import os
import random
import struct
import tracemalloc
import warnings

import forging
import fuzzing
import h5py
import hdf5_bytes
import numpy as np
import pytest
from checkpointing import same_bits, small_checkpoint, small_net
from forging import added, attribute, describe, document, entry, forge, removed, without_attribute

import mlpkit
from mlpkit import ModelFormatError, model_file
from mlpkit.checkpoint import describe_checkpoint, read_checkpoint, write_checkpoint

POSIX = pytest.mark.skipif(os.name == "nt", reason="permission bits, locks and hard links of POSIX")


@pytest.fixture
def run(tmp_path):
    write_checkpoint(tmp_path / "run.h5", small_checkpoint())
    return tmp_path / "run.h5"


# -------------------------------------------------------------------------------------- forged files


def replaced(name, data, **options):
    """Other than forging's, whose encodings are a model's."""

    def edit(file):
        attributes = dict(file[name].attrs)
        del file[name]
        file.create_dataset(name, data=data, **options).attrs.update(attributes)

    return edit


def valued(name, value, state="optimizer"):
    """Change or add one entry of a state's index."""

    def edit(file):
        values = json.loads(file[f"{state}/values"][()].tobytes())
        values[name] = value
        forging.put_json(file, f"{state}/values", values)

    return edit


def both(*edits):
    return lambda file: [edit(file) for edit in edits]


def linked(name, link):
    def edit(file):
        del file[name]
        file[name] = link if not isinstance(link, str) else file[link]

    return edit


def virtual(file):
    layout = h5py.VirtualLayout((24,), dtype="<f8")
    layout[:] = h5py.VirtualSource("other.h5", "W", shape=(24,))
    attributes = dict(file["optimizer/arrays/pairs"].attrs)
    del file["optimizer/arrays/pairs"]
    file["optimizer/arrays"].create_virtual_dataset("pairs", layout).attrs.update(attributes)


def external(file):
    attributes = dict(file["theta"].attrs)
    del file["theta"]
    there = [("/etc/passwd", 0, 24 * 8)]
    file.create_dataset("theta", shape=(24,), dtype="<f8", external=there).attrs.update(attributes)


def unwritten(name, shape):
    def edit(file):
        attributes = dict(file[name].attrs)
        del file[name]
        file.create_dataset(name, shape=shape, dtype="<f8").attrs.update(attributes)

    return edit


ARRAY = "optimizer/arrays/pairs"
HUGE = [2**20, 2**20, 2**20]
REFUSED = {
    "no_theta": (removed("theta"), "/theta: missing"),
    "no_optimizer": (removed("optimizer"), "/optimizer: missing"),
    "no_values": (removed("loop/values"), "/loop/values: missing"),
    "no_arrays": (removed("loop/arrays"), "/loop/arrays: missing"),
    "array_missing": (removed(ARRAY), "/optimizer/arrays/pairs: missing"),
    "array_more": (added("optimizer/arrays/more", np.ones(3)), "/optimizer/arrays/more: not part of the format"),
    "member_more": (added("more", np.ones(3)), "/more: not part of the format"),
    "state_more": (added("loop/more", np.ones(3)), "/loop/more: not part of the format"),
    "parameters": (lambda file: describe(file.create_group("parameters")), "/parameters: not part of the format"),
    "attribute_more": (attribute("a", 1, "loop"), "/loop: attribute a: not part of the format"),
    "no_objective": (without_attribute("objective"), "objective: missing"),
    "other_objective": (attribute("objective", np.bytes_("J = 0")), "objective: expected 'J = "),
    "long_writer": (attribute("writer", np.bytes_("a" * 1025)), "writer: expected text of fixed length"),
    "encoding": (attribute("encoding-type", np.bytes_("mlpkit.model")), "expected 'mlpkit.checkpoint', found"),
    "state_encoding": (attribute("encoding-type", np.bytes_("mlpkit.dense"), "loop"), "expected 'mlpkit.state'"),
    "newer_encoding": (attribute("encoding-version", np.bytes_("2.0"), "loop"), "newer than this mlpkit"),
    "theta_dtype": (replaced("theta", np.zeros(24, "<f4")), "/theta: expected dtype <f8"),
    "theta_integers": (replaced("theta", np.zeros(24, "<i8")), "/theta: expected dtype <f8"),
    "theta_big_endian": (replaced("theta", np.zeros(24, ">f8")), "/theta: expected dtype <f8"),
    "theta_short": (replaced("theta", np.zeros(23)), r"/theta: expected shape \(24,\), found \(23,\)"),
    "theta_2d": (replaced("theta", np.zeros((24, 1))), r"/theta: expected shape \(24,\)"),
    "theta_nan": (entry("theta", 3, np.nan), r"/theta\[3\]: expected finite numbers, found nan"),
    "theta_inf": (entry("theta", 0, -np.inf), r"/theta\[0\]: expected finite numbers, found -inf"),
    "theta_group": (both(removed("theta"), lambda file: file.create_group("theta")), "/theta: expected a dataset"),
    "array_group": (both(removed(ARRAY), lambda file: file.create_group(ARRAY)), "pairs: expected a dataset"),
    "loop_dataset": (both(removed("loop"), added("loop", 1.0)), "/loop: expected a group"),
    "array_dtype": (replaced(ARRAY, np.zeros((2, 3, 4), "<f4")), "pairs: expected dtype <f8"),
    "array_complex": (replaced(ARRAY, np.zeros((2, 3, 4), "c16")), "pairs: expected dtype <f8"),
    "array_objects": (replaced(ARRAY, ["a"], dtype=h5py.string_dtype()), "pairs: expected dtype <f8"),
    "array_references": (
        lambda file: replaced(ARRAY, np.array([file.ref], h5py.ref_dtype), dtype=h5py.ref_dtype)(file),
        "pairs: expected dtype <f8",
    ),
    "array_shape": (replaced(ARRAY, np.zeros((2, 4, 3))), r"pairs: expected shape \(2, 3, 4\), found \(2, 4, 3\)"),
    "array_scalar": (replaced(ARRAY, 1.0), "pairs: expected an array, found a scalar"),
    "array_null": (replaced(ARRAY, h5py.Empty("<f8")), "pairs: expected an array, found a scalar or an empty"),
    "scalar_array": (replaced("optimizer/arrays/step", np.ones(1)), "step: expected a scalar, found an array"),
    "scalar_null": (replaced("optimizer/arrays/step", h5py.Empty("<f8")), "step: expected a scalar"),
    "array_chunked": (replaced(ARRAY, np.ones((2, 3, 4)), chunks=True), "pairs: expected contiguous storage"),
    "array_zipped": (replaced(ARRAY, np.ones((2, 3, 4)), compression="gzip"), "pairs: filters and compression"),
    "array_growing": (replaced(ARRAY, np.ones((2, 3, 4)), maxshape=(None, 3, 4)), "pairs: expected contiguous"),
    "array_virtual": (virtual, "pairs: a virtual dataset"),
    "theta_external": (external, "/theta: external storage"),
    "array_unwritten": (unwritten(ARRAY, (2, 3, 4)), "pairs: its numbers are missing from the file"),
    "soft_link": (linked("theta", h5py.SoftLink("/optimizer")), "/theta: expected a hard link, found a soft link"),
    "external_link": (linked(ARRAY, h5py.ExternalLink("x.h5", "/")), "pairs: expected a hard link, found an external"),
    "loop_link": (linked("loop", "optimizer"), "/optimizer: expected an object of its own"),
    "cycle": (linked("optimizer/arrays", "/"), "/optimizer/arrays: expected an object of its own"),
    "array_twice": (
        linked("loop/arrays/history.cost", "optimizer/arrays/pairs"),
        "expected an object of its own, found one with several links",
    ),
    "values_no_json": (document("loop/values", b"{"), "/loop/values: not valid JSON"),
    "values_pickle": (document("loop/values", b"\x80\x04N."), "/loop/values: not valid JSON"),
    "values_list": (document("loop/values", []), "/loop/values: expected an object, found list"),
    "values_twice": (document("loop/values", b'{"a": 1, "a": 2}'), "/loop/values: a key occurs twice"),
    "values_deep": (document("loop/values", b"[" * 10**5), "/loop/values: not valid JSON"),
    "values_long": (document("loop/values", b'{"a": "%s"}' % (b"x" * 2**20)), "/loop/values: expected 1 to 1048576"),
    "values_text": (replaced("loop/values", np.bytes_("{}")), r"/loop/values: expected dtype \|u1"),
    "float": (valued("version", 1.0), "values: version: expected an integer, a string or an array's"),
    "bool": (valued("version", True), "values: version: expected an integer"),
    "null": (valued("version", None), "values: version: expected an integer"),
    "list": (valued("version", [1]), "values: version: expected an integer"),
    "nan": (document("loop/values", b'{"a": NaN}'), "NaN is not a finite number"),
    "large": (valued("version", 2**64), "values: version: expected an integer of 64 bits, found one of 65"),
    "low": (valued("version", -(2**63) - 1), "values: version: expected an integer of 64 bits"),
    "many_digits": (document("loop/values", b'{"a": %s}' % (b"9" * 5000)), "/loop/values: not valid JSON"),
    "name_empty": (valued("", 1), "/optimizer/values: expected names"),
    "name_slash": (valued("../x", 1), "/optimizer/values: expected names"),
    "name_dot": (valued(".", {"dtype": "float64", "shape": [3]}), "/optimizer/values: expected names"),
    "name_control": (valued("a\x1b[2J", 1), r"/optimizer/values: expected names.*x1b"),
    "name_surrogate": (valued("\ud800", 1), "/optimizer/values: expected names"),
    "name_long": (valued("x" * 256, 1), "/optimizer/values: expected names"),
    "spec_more": (valued("pairs", {"dtype": "float64", "shape": [], "a": 1}), "pairs: expected an integer, a str"),
    "spec_less": (valued("pairs", {"shape": [2]}), "pairs: expected an integer, a string or an array"),
    "spec_dtype": (valued("pairs", {"dtype": "O", "shape": [24]}), "pairs: dtype: expected float64 or float32"),
    "spec_dtype_list": (valued("pairs", {"dtype": ["float64"], "shape": [24]}), "pairs: dtype: expected float64"),
    "spec_shape": (valued("pairs", {"dtype": "float64", "shape": 24}), "pairs: shape: expected a list of lengths"),
    "spec_negative": (valued("pairs", {"dtype": "float64", "shape": [-1, 2]}), "shape: expected a list of lengths"),
    "spec_float": (valued("pairs", {"dtype": "float64", "shape": [2.0]}), "shape: expected a list of lengths"),
    "spec_bool": (valued("pairs", {"dtype": "float64", "shape": [True]}), "shape: expected a list of lengths"),
    "spec_many": (valued("pairs", {"dtype": "float64", "shape": [1] * 33}), "shape: more than 32 dimensions"),
    "spec_huge": (valued("pairs", {"dtype": "float64", "shape": HUGE}), "shape: more than 32 dimensions or 68719"),
    "spec_huge_zero": (valued("pairs", {"dtype": "float64", "shape": [*HUGE, 0]}), "shape: more than 32 dim"),
    "spec_other": (valued("pairs", {"dtype": "float64", "shape": [24]}), r"pairs: expected shape \(24,\)"),
    "spec_for_value": (valued("version", {"dtype": "float64", "shape": [1]}), "arrays/version: missing"),
    "value_for_spec": (valued("pairs", 3), "arrays/pairs: not part of the format"),
    "unwritten_huge": (
        both(valued("pairs", {"dtype": "float64", "shape": [2**30]}), unwritten(ARRAY, (2**30,))),
        "pairs: its numbers are missing from the file",
    ),
    "config_list": (document("config", []), "/config: expected an object"),
    "config_dtype": (forging.configured("dtype", "float32"), "/theta: expected dtype <f4, found another"),
    "config_units": (forging.configured("layers", 0, "units", 2**40), "/theta: expected shape"),
    "config_zero": (forging.configured("layers", 0, "units", 0), "/config: layer 1: units: expected a positive"),
    "config_tied": (forging.configured("layers", 3, "tied_to", 9), "/config: layer 4: tied_to"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_a_checkpoint_is_refused_by_element_and_reason(run, name):
    edit, message = REFUSED[name]
    forge(run, edit)
    for call in (read_checkpoint, describe_checkpoint):
        tracemalloc.start()
        with pytest.raises(ModelFormatError, match=message) as caught:
            call(run)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 10e6
        assert str(caught.value).startswith(f"{run}: ")
        assert len(str(caught.value)) < 1000
        str(caught.value).encode()


def test_an_untouched_forgery_is_read(run):
    forge(run, valued("version", 1))
    assert same_bits(tuple(read_checkpoint(run)), tuple(small_checkpoint()))


def test_arrays_that_share_bytes_are_refused(run):
    """Two arrays of one place: HDF5 writes no such file, so an address in it is changed."""
    image = bytearray(run.read_bytes())
    with h5py.File(run) as file:
        places = [file[name].id.get_offset() - 512 for name in ("theta", "optimizer/arrays/m")]
    assert image.count(struct.pack("<Q", places[1])) == 1
    position = image.index(struct.pack("<Q", places[1]))
    struct.pack_into("<Q", image, position, places[0])
    run.write_bytes(forging.seal(hdf5_bytes.with_checksums(bytes(image))))
    with pytest.raises(ModelFormatError, match="shares bytes of the file with"):
        read_checkpoint(run)


def test_a_model_and_a_checkpoint_are_not_taken_for_one_another(tmp_path, run):
    small_net().save(tmp_path / "model.h5")
    with pytest.raises(ModelFormatError, match=r"an mlpkit model, not an mlpkit checkpoint: mlpkit\.load reads it"):
        read_checkpoint(tmp_path / "model.h5")
    for call in (mlpkit.load, model_file.describe):
        with pytest.raises(ModelFormatError, match=r"an mlpkit checkpoint, not an mlpkit model: .*fit\(..., resume="):
            call(run)
    # Nor by those who change the first line.
    run.write_bytes(forging.seal(run.read_bytes(), magic=forging.MAGIC))
    with pytest.raises(ModelFormatError, match=r"encoding-type: expected 'mlpkit\.model', found 'mlpkit\.checkpoint'"):
        mlpkit.load(run)


def test_damage_is_found_before_anything_is_read(run):
    image = run.read_bytes()
    rng = random.Random(0)
    for position in [*range(0, 512, 7), *rng.sample(range(512, len(image)), 300)]:
        damaged = bytearray(image)
        damaged[position] ^= 1 << rng.randrange(8)
        run.write_bytes(damaged)
        with pytest.raises(ModelFormatError, match=r"user block|version|length|file|digest"):
            read_checkpoint(run)
    for length in [0, 5, 20, 100, 512, len(image) - 1]:
        run.write_bytes(image[:length])
        with pytest.raises(ModelFormatError):
            read_checkpoint(run)


def test_newer_versions(run):
    def new(file):
        file["plots"] = h5py.ExternalLink("x.h5", "/")
        file["loop"].attrs["unit"] = "m"

    forge(run, new, version="1.3")
    with pytest.warns(UserWarning, match=r"version 1\.3 is newer.*ignores: /plots, /loop: attribute unit") as caught:
        found = read_checkpoint(run)
    assert caught[0].filename == __file__
    assert same_bits(tuple(found), tuple(small_checkpoint()))
    assert describe_checkpoint(run).ignored == ["/plots", "/loop: attribute unit"]
    forge(run, valued("version", None), version="1.3")
    with pytest.raises(ModelFormatError, match="version: expected an integer"):
        read_checkpoint(run)
    run.write_bytes(forging.seal(run.read_bytes(), version="2.0"))
    with pytest.raises(ModelFormatError, match=r"has version 2\.0, this mlpkit reads up to 1: update"):
        read_checkpoint(run)


# ------------------------------------------------------------------------------------- mutations


def test_mutations_reach_every_part_of_the_reader(tmp_path):
    path, reasons = tmp_path / "run.h5", set()
    for seed in range(300):
        path.write_bytes(fuzzing.mutated(seed, "checkpoint"))
        try:
            with warnings.catch_warnings(action="ignore"):
                read_checkpoint(path)
            reasons.add("read")
        except ModelFormatError as error:
            reasons.add(str(error).removeprefix(f"{path}: ").partition(":")[0])
    wanted = {"read", "content", "/config", "/theta", "/loop/values", "/optimizer/values", "/optimizer/arrays"}
    assert reasons >= wanted, reasons


def test_a_thousand_mutations():
    assert fuzzing.fuzz(0, 1000, kind="checkpoint") == []


@pytest.mark.soak
def test_fifty_thousand_mutations():
    first = 10**6 * (1 + int.from_bytes(os.urandom(4), "little"))
    assert fuzzing.fuzz(first, 50_000, kind="checkpoint") == []
