"""Make a model file for every attack we know of, and expected.json, which says how each must be refused.

Run from anywhere: python tests/data/hostile/make_hostile.py. The files are kept in the repository, so that every later
version of mlpkit, and of the HDF5 library under it, is tried on the same bytes. Every one but the damaged has a right
digest: it is the content that must be caught.
"""

import io
import json
import re
import struct
import sys
from pathlib import Path

import h5py
import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

import forging as f  # noqa: E402
import hdf5_bytes  # noqa: E402

from mlpkit import MLP, Dense, Input, KLSparsity  # noqa: E402

W1, B1 = "parameters/1/W", "parameters/1/b"
TEXT = h5py.string_dtype()


def network():
    """The network that all files are made from."""
    hidden = Dense(3, "sigmoid", sparsity=KLSparsity(rho=0.1, beta=2.0), weight_decay=0.5)
    middle = Dense(2, "tanh", bias=False, init="glorot_uniform")
    return MLP([Input(4), hidden, middle, Dense(4, "identity")], weight_decay=1e-3, seed=1)


# Attacks through HDF5: an edit of the open file, and what the refusal must match.
EDITS = {
    # numbers
    "nan": (f.entry(W1, (2, 1), np.nan), r"/parameters/1/W\[2, 1\]: expected finite.*nan"),
    "inf": (f.entry(B1, 0, -np.inf), r"/parameters/1/b\[0\]: expected finite.*-inf"),
    # shapes
    "transposed": (f.replaced(W1, np.ones((4, 3))), r"/1/W: expected shape \(3, 4\), found \(4, 3\)"),
    "flat": (f.replaced(W1, np.ones(12)), r"/1/W: expected shape"),
    "scalar": (f.replaced(W1, 1.0), r"/1/W: expected an array"),
    "empty": (f.replaced(W1, h5py.Empty("<f8")), r"/1/W: "),
    "short_bias": (f.replaced(B1, np.ones(2)), r"/1/b: expected shape \(3,\), found \(2,\)"),
    "huge_shape": (f.huge((2**29, 2**29)), r"/1/W: expected shape"),
    "zero_shape": (f.replaced(W1, np.ones((0, 4))), r"/1/W: expected shape"),
    # types
    "float32": (f.replaced(W1, np.ones((3, 4), "<f4")), r"/1/W: expected dtype <f8"),
    "big_endian": (f.replaced(W1, np.ones((3, 4), ">f8")), r"/1/W: expected dtype <f8"),
    "integers": (f.replaced(W1, np.ones((3, 4), "<i8")), r"/1/W: expected dtype <f8"),
    "complex": (f.replaced(W1, np.ones((3, 4), complex)), r"/1/W: expected dtype <f8"),
    "objects": (f.replaced(B1, ["a", "b", "c"], dtype=TEXT), r"/1/b: expected dtype"),
    "references": (lambda file: f.replaced(B1, [file.ref] * 3, dtype=h5py.ref_dtype)(file), r"/1/b: expected dtype"),
    "committed_type": (f.committed_type, r"/1/W: expected dtype"),
    "config_as_text": (f.replaced("config", "{}"), r"/config: expected dtype \|u1"),
    # members
    "no_W": (f.removed(W1), r"/parameters/1/W: missing"),
    "no_b": (f.removed(B1), r"/parameters/1/b: missing"),
    "no_layer": (f.removed("parameters/2"), r"/parameters/2: missing"),
    "no_parameters": (f.removed("parameters"), r"/parameters: missing"),
    "no_config": (f.removed("config"), r"/config: missing"),
    "no_metadata": (f.removed("metadata"), r"/metadata: missing"),
    "no_provenance": (f.removed("provenance"), r"/provenance: missing"),
    "extra_dataset": (f.added("parameters/1/U", 1.0), r"/parameters/1/U: not part of the format"),
    "extra_layer": (f.added("parameters/4/W", 1.0), r"/parameters/4: not part of the format"),
    "extra_at_root": (f.added("notes", 1.0), r"/notes: not part of the format"),
    "odd_name": (lambda file: file.create_group(b"\xff"), "not part of the format"),
    "unwanted_bias": (f.added("parameters/2/b", np.ones(2)), r"/parameters/2/b: not part of the format"),
    "dataset_for_group": (f.replaced("parameters/1", 1.0), r"/parameters/1: expected a group"),
    "group_for_dataset": (
        lambda file: (f.removed(W1)(file), file.create_group(W1)),
        r"/1/W: expected a dataset, found a group",
    ),
    "type_for_dataset": (f.relinked(W1, np.dtype("<f8")), r"/1/W: expected a dataset, found a datatype"),
    # links and storage
    "soft_link": (f.relinked(W1, h5py.SoftLink("/parameters/3/W")), r"/1/W: .*found a soft link"),
    "external_link": (f.relinked(W1, h5py.ExternalLink("other.h5", "W")), r"/1/W: .*found an external link"),
    "external_group": (
        f.relinked("parameters", h5py.ExternalLink("other.h5", "/")),
        r"/parameters: .*found an external link",
    ),
    "shared_object": (f.shared, r"/W: expected an object of its own"),
    "loop": (f.loop, r"/parameters/3: expected an object of its own"),
    "virtual": (f.virtual, r"/1/W: a virtual dataset"),
    "external_storage": (f.external, r"/1/W: external storage"),
    "chunked": (f.replaced(W1, np.ones((3, 4)), chunks=(3, 4)), r"/1/W: expected contiguous"),
    "growable": (f.replaced(W1, np.ones((3, 4)), maxshape=(None, 4)), r"/1/W: expected contiguous"),
    "compressed": (f.replaced(W1, np.ones((3, 4)), compression="gzip"), r"/1/W: filters"),
    "checksum_filter": (f.replaced(W1, np.ones((3, 4)), fletcher32=True), r"/1/W: filters"),
    "compact": (f.compact, r"/1/W: expected contiguous"),
    "unwritten": (f.unwritten, r"/1/W: its numbers are missing"),
    # attributes
    "no_encoding": (f.without_attribute("encoding-type", W1), r"/1/W: attribute encoding-type: missing"),
    "other_encoding": (
        f.attribute("encoding-type", np.bytes_("pickle"), "config"),
        r"/config: attribute encoding-type: expected 'mlpkit.json', found 'pickle'",
    ),
    "newer_encoding": (
        f.attribute("encoding-version", np.bytes_("2.0"), W1),
        r"/1/W: attribute encoding-version: mlpkit.array 2.0 is newer than this mlpkit: update",
    ),
    "newer_minor_encoding": (
        f.attribute("encoding-version", np.bytes_("1.1"), W1),
        r"/1/W: attribute encoding-version: expected '1.0', found '1.1'",
    ),
    "no_such_encoding": (f.attribute("encoding-version", np.bytes_("new"), W1), r"encoding-version: expected one such"),
    "no_objective": (f.without_attribute("objective"), "attribute objective: missing"),
    "other_objective": (f.attribute("objective", np.bytes_("J = 0")), "attribute objective: expected"),
    "extra_attribute": (f.attribute("author", 1), "/: attribute author: not part of the format"),
    "text_attribute": (f.attribute("writer", "mlpkit"), "attribute writer: expected text of fixed length"),
    "number_attribute": (f.attribute("writer", 1.0), "attribute writer: expected text of fixed length"),
    "array_attribute": (f.attribute("writer", np.array([b"mlpkit"])), "attribute writer: expected a scalar"),
    "long_attribute": (f.attribute("writer", np.bytes_("1" * 1025)), "attribute writer: expected text.* at most 1024"),
    "dataset_attribute": (f.attribute("a", 1, W1), r"/1/W: attribute a: not part of the format"),
    "group_attribute": (f.attribute("a", 1, "parameters"), "/parameters: attribute a: not part of the format"),
    # documents
    "no_json": (f.document("config", b"{"), "/config: not valid JSON"),
    "no_utf8": (f.document("config", b'{"\xff": 1}'), "/config: not valid JSON in UTF-8"),
    "no_object": (f.document("config", b"[1]"), "/config: expected an object, found list"),
    "nested_deeply": (f.document("config", b"[" * 5000), "/config: not valid JSON"),
    "key_twice": (f.document("config", b'{"a": 1, "a": 2}'), "/config: a key occurs twice"),
    "json_nan": (f.document("config", b'{"a": NaN}'), "/config: NaN is not a finite number"),
    "json_1e999": (f.document("config", b'{"a": 1e999}'), "/config: 1e999 is not a finite number"),
    "huge_integer": (f.document("config", b'{"a": ' + b"9" * 5000 + b"}"), "/config: not valid JSON"),
    "config_in_2d": (f.replaced("config", np.ones((2, 2), np.uint8)), "/config: expected 1 to 1048576 bytes"),
    "config_with_pickle": (f.document("config", b"cos\nsystem\n(S'true'\ntR."), "/config: not valid JSON"),
    "metadata_list": (f.document("metadata", []), "/metadata: expected an object, found list"),
    "metadata_nan": (f.document("metadata", b'{"a": -Infinity}'), "/metadata: -Infinity is not a finite number"),
    "provenance_text": (f.document("provenance", "me"), "/provenance: expected an object or null, found str"),
    # configuration
    "unknown_key": (f.configured("colour", "red"), "/config: colour: not part of the format"),
    "missing_key": (f.without_key("weight_decay"), "/config: .*weight_decay.* is missing"),
    "unknown_layer_key": (f.configured("layers", 1, "colour", "red"), "/config: layers 2: colour: not part"),
    "missing_layer_key": (f.without_key("layers", 1, "activation"), "layer 2: activation: None is not registered"),
    "dtype": (f.configured("dtype", "float16"), "/config: dtype: expected float64 or float32"),
    "dtype_list": (f.configured("dtype", [1]), "/config: dtype: expected"),
    "other_dtype": (f.configured("dtype", "float32"), r"/1/W: expected dtype <f4"),
    "no_layers": (f.configured("layers", []), "/config: layers: expected a list of 2"),
    "layers_text": (f.configured("layers", "ab"), "/config: layers: expected a list"),
    "layer_text": (f.configured("layers", 1, "ab"), "/config: layer 2: expected a layer of type"),
    "two_inputs": (f.configured("layers", 1, "type", "Input"), "/config: layer 2: .*Dense"),
    "zero_units": (f.configured("layers", 1, "units", 0), "/config: layer 2: units: expected"),
    "true_units": (f.configured("layers", 1, "units", True), "/config: layer 2: units: expected"),
    "float_units": (f.configured("layers", 1, "units", 3.0), "/config: layer 2: units: expected"),
    "more_units": (f.configured("layers", 1, "units", 4), r"/1/W: expected shape \(4, 4\)"),
    "huge_units": (f.configured("layers", 1, "units", 10**9), "/config: asks for .* parameters"),
    "huge_product": (
        lambda file: [f.configured("layers", i, "units", 2**40)(file) for i in range(4)],
        "/config: asks for .* parameters",
    ),
    "half_a_surrogate": (f.document("config", b'{"dtype": "\\ud800"}'), r"/config: dtype: .*ud800"),
    "half_a_surrogate_as_key": (f.configured("\ud800", 1), r"/config: .*ud800: not part of the format"),
    "bias": (f.configured("layers", 1, "bias", 1), "/config: layer 2: bias: expected true or"),
    "tied_forward": (f.configured("layers", 1, "tied_to", 2), "/config: layer 2: tied_to: expected the number"),
    "tied_text": (f.configured("layers", 3, "tied_to", "1"), "/config: layer 4: tied_to: expected the number"),
    "tied_to_another_shape": (f.configured("layers", 3, "tied_to", 1), "layer 4: tied_to: .*another shape"),
    "activation": (
        f.configured("layers", 1, "activation", "swoosh"),
        "layer 2: activation: 'swoosh' is not registered",
    ),
    "activation_path": (f.configured("layers", 1, "activation", "os.system"), "'os.system' is not registered"),
    "activation_list": (f.configured("layers", 1, "activation", []), "layer 2: activation: "),
    "loss": (f.configured("loss", "hinge"), "/config: loss: 'hinge' is not registered.*@mlpkit.loss"),
    "rho": (f.configured("layers", 1, "sparsity", "rho", 2.0), "/config: "),
    "sparsity_text": (f.configured("layers", 1, "sparsity", "strong"), "/config: "),
    "decay": (f.configured("weight_decay", -1.0), "/config: "),
    "decay_text": (f.configured("weight_decay", "1"), "/config: "),
    "seed": (f.configured("seed", "x"), "/config: "),
}


# Attacks byte by byte, which no HDF5 library would write: from the file's bytes to others.


def patched(kind, offset, value, name=b"W"):
    """Change a message in the header of the first object of this name."""

    def change(image):
        stop = hdf5_bytes.links(image)[name][0][2]
        address = 512 + struct.unpack_from("<Q", image, stop)[0]
        block = next(block for block in hdf5_bytes.blocks(image) if block.start == address)
        place = next(start for found, start, _ in hdf5_bytes.messages(image, block) if found == kind)
        image = bytearray(image)
        struct.pack_into("<Q", image, place + offset, value)
        return f.seal(hdf5_bytes.with_checksums(image))

    return change


def overlapping(image):
    """Two datasets whose numbers are partly the same bytes."""
    with h5py.File(io.BytesIO(image)) as file:
        other = file["parameters/3/W"].id.get_offset()
    return patched(LAYOUT, 2, other - 512 + 8)(image)


def one_object_twice(image):
    """A second link to an object that says that it has one."""
    places = hdf5_bytes.links(image)[b"b"]
    image = bytearray(image)
    target = bytes(image[places[0][2] : places[0][2] + 8])
    image[places[1][2] : places[1][2] + 8] = target
    return f.seal(hdf5_bytes.with_checksums(image))


def one_name_twice(image):
    """Two members of a group that are called the same."""
    _, name, _ = hdf5_bytes.links(image)[b"b"][0]
    image = bytearray(image)
    image[name : name + 1] = b"W"
    return f.seal(hdf5_bytes.with_checksums(image))


def endless_header(image):
    """An object header that goes on in itself."""
    block = next(block for block in hdf5_bytes.blocks(image) if block.kind == "continuation")
    image = bytearray(image)
    for owner in hdf5_bytes.blocks(image):
        for kind, start, _ in hdf5_bytes.messages(image, owner):
            if kind == 0x10 and struct.unpack_from("<Q", image, start)[0] + 512 == block.start:
                struct.pack_into("<B", image, block.first, 0x10)
                struct.pack_into("<H", image, block.first + 1, 16)
                struct.pack_into("<QQ", image, block.first + 4, *struct.unpack_from("<QQ", image, start))
                return f.seal(hdf5_bytes.with_checksums(image))
    raise AssertionError("no such header")


def user_defined_link(image):
    """A link of a class that a plugin would have to follow."""
    image = f.forged(image, EDITS["external_link"][0])
    start, _, _ = hdf5_bytes.links(image)[b"W"][-1]
    image = bytearray(image)
    for start, _, _ in hdf5_bytes.links(image)[b"W"]:
        if image[start + 1] & 8 and image[start + 2] == 64:
            image[start + 2] = 65
    return f.seal(hdf5_bytes.with_checksums(image))


def damaged(image):
    return image[:-9] + bytes([image[-9] ^ 16]) + image[-8:]


LAYOUT, SPACE = 8, 1
BYTES = {
    "one_object_twice": (one_object_twice, r"/b: expected an object of its own"),
    "one_name_twice": (one_name_twice, r"/parameters/1/W: occurs twice|cannot read it"),
    "endless_header": (endless_header, r"cannot read it|missing"),
    "user_defined_link": (user_defined_link, r"/1/W: expected a hard link, found a user-defined link"),
    "overlapping": (overlapping, r"/parameters/./W: shares bytes of the file with /parameters/./W"),
    "beyond_the_end": (patched(LAYOUT, 2, 2**40), r"/W: its numbers are missing|cannot read it"),
    "just_beyond_the_end": (lambda image: patched(LAYOUT, 2, len(image) - 512 - 8)(image), r"missing|cannot read it"),
    "another_size": (patched(LAYOUT, 10, 2**62), r"/W: its numbers are missing|cannot read it"),
    "huge_dimension": (patched(SPACE, 4, 2**63 - 1), r"/W: expected shape|cannot read it"),
    "huge_text": (patched(SPACE, 4, 2**63 - 1, b"config"), r"/config: |cannot read it"),
    "moved_hdf5": (lambda image: f.seal(image[:512] + bytes(512) + image[512:]), "HDF5 signature: missing at byte 512"),
    "no_hdf5": (lambda image: f.seal(image[:512] + bytes(100)), "HDF5 signature: missing at byte 512"),
    "superblock_only": (lambda image: f.seal(image[:560]), "cannot read it"),
    "cut_and_sealed": (lambda image: f.seal(image[:-200]), r"cannot read it|missing"),
    # not sealed: what befalls files without anybody's doing
    "damaged": (damaged, "SHA-256 digest: does not match the content: the file is damaged"),
    "other_digest": (
        lambda image: re.sub(rb"sha256 ..", b"sha256 zz", image, count=1),
        "SHA-256 digest: does not match",
    ),
    "truncated": (lambda image: image[:-1], "file: expected .* bytes, found .*: it is truncated"),
    "longer": (lambda image: image + b"\n", "file: expected .* bytes, found .*: something follows its end"),
    "head_only": (lambda image: image[:100], "user block: truncated after 100 of 512 bytes"),
    "nothing": (lambda image: b"", "file: is empty"),
    "text_mode": (lambda image: image.replace(b"\r\n", b"\n"), "user block: .*transferred in text mode"),
    "plain_hdf5": (lambda image: image[512:], "user block: missing: an HDF5 file, but not an mlpkit model"),
    "no_model": (lambda image: b"hello, world\n", "user block: not an mlpkit model file"),
    "newer_major": (
        lambda image: f.seal(image, "2.0"),
        "format version: the file has version 2.0, this.*update",
    ),
    "no_version": (lambda image: f.seal(image, "one"), "format version: cannot be read"),
    "huge_length": (
        lambda image: image.replace(b"length %d" % len(image), b"length 999999999999999999", 1),
        "file: expected 999999999999999999 bytes, found .*: it is truncated",
    ),
}


def make(folder=HERE):
    """Write all files and expected.json into a folder."""
    path = folder / "model.h5"
    network().save(path)
    image = path.read_bytes()
    path.unlink()
    for name, (edit, _) in EDITS.items():
        (folder / f"{name}.h5").write_bytes(f.forged(image, edit))
    for name, (change, _) in BYTES.items():
        (folder / f"{name}.h5").write_bytes(change(image))
    expected = {name: reason for table in (EDITS, BYTES) for name, (_, reason) in sorted(table.items())}
    (folder / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    make()
