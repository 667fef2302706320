"""Model and checkpoint files changed at will: through HDF5 or byte by byte, with a seal that is right all the same.

`seal` writes the first 512 bytes anew, as docs/model-format.md specifies them, so that a forged file gets past the
digest and must be refused for what it contains.
"""

import hashlib
import io
import json

import h5py
import numpy as np

MAGIC = b"mlpkit model\r\n\x1a\n"
CHECKPOINT_MAGIC = b"mlpkit checkpoint\r\n\x1a\n"


def seal(image, version="1.0", magic=None):
    """An HDF5 image with a right seal: of the kind that it is, unless told otherwise."""
    magic = magic or (CHECKPOINT_MAGIC if image.startswith(CHECKPOINT_MAGIC) else MAGIC)
    head = f"format version {version}\nlength {len(image)}\nsha256 "
    head += hashlib.sha256(image[512:]).hexdigest() + "\n"
    return (magic + head.encode()).ljust(512, b"\0") + image[512:]


def forged(image, edit, version="1.0"):
    """A file's bytes after an edit through HDF5; a wrong seal if the edit wants that."""
    buffer = io.BytesIO(image)
    with h5py.File(buffer, "r+") as file:
        edit(file)
    return seal(buffer.getvalue(), version)


def forge(path, edit, version="1.0"):
    """Change a file through HDF5 and make its seal right again."""
    path.write_bytes(forged(path.read_bytes(), edit, version))


def describe(element, name="mlpkit.array", version="1.0"):
    """Give an element the encoding that the format asks for."""
    element.attrs["encoding-type"] = np.bytes_(name)
    element.attrs["encoding-version"] = np.bytes_(version)


def with_encoding(file, path):
    describe(file[path], "mlpkit.array" if path.startswith("parameters") else "mlpkit.json")


def config_of(file):
    return json.loads(file["config"][()].tobytes())


def put_json(file, name, value):
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    del file[name]
    file[name] = np.frombuffer(raw, np.uint8)
    describe(file[name], "mlpkit.json")


# Each of the following gives an edit: a function of an open file.


def replaced(name, data, **options):
    def edit(file):
        del file[name]
        file.create_dataset(name, data=data, **options)
        with_encoding(file, name)

    return edit


def removed(name):
    return lambda file: file.__delitem__(name)


def added(name, value):
    return lambda file: file.__setitem__(name, value)


def entry(name, index, value):
    return lambda file: file[name].__setitem__(index, value)


def relinked(name, link):
    def edit(file):
        del file[name]
        file[name] = link

    return edit


def attribute(name, value, where="/"):
    return lambda file: file[where].attrs.__setitem__(name, value)


def without_attribute(name, where="/"):
    return lambda file: file[where].attrs.__delitem__(name)


def document(name, value):
    return lambda file: put_json(file, name, value)


def configured(*keys_and_value):
    *keys, last, value = keys_and_value

    def edit(file):
        config = target = config_of(file)
        for key in keys:
            target = target[key]
        target[last] = value
        put_json(file, "config", config)

    return edit


def without_key(*keys):
    *keys, last = keys

    def edit(file):
        config = target = config_of(file)
        for key in keys:
            target = target[key]
        del target[last]
        put_json(file, "config", config)

    return edit


def virtual(file):
    layout = h5py.VirtualLayout((3, 4), dtype="<f8")
    layout[:] = h5py.VirtualSource("other.h5", "W", shape=(3, 4))
    del file["parameters/1/W"]
    describe(file["parameters/1"].create_virtual_dataset("W", layout))


def external(file):
    del file["parameters/1/W"]
    name, there = "parameters/1/W", [("/etc/passwd", 0, 96)]
    describe(file.create_dataset(name, shape=(3, 4), dtype="<f8", external=there))


def unwritten(file):
    del file["parameters/1/W"]
    describe(file.create_dataset("parameters/1/W", shape=(3, 4), dtype="<f8"))


def compact(file):
    del file["parameters/1/W"]
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_layout(h5py.h5d.COMPACT)
    space = h5py.h5s.create_simple((3, 4))
    h5py.h5d.create(file["parameters/1"].id, b"W", h5py.h5t.IEEE_F64LE, space, properties)
    with_encoding(file, "parameters/1/W")


def committed_type(file):
    file["named"] = np.dtype("<f8")
    del file["parameters/1/W"]
    describe(file.create_dataset("parameters/1/W", data=np.ones((3, 4)), dtype=file["named"]))
    del file["named"]


def huge(shape):
    """A dataset of a shape that no memory holds, of which no number is written."""

    def edit(file):
        del file["parameters/1/W"]
        describe(file.create_dataset("parameters/1/W", shape=shape, dtype="<f8"))

    return edit


def shared(file):
    del file["parameters/3/b"]
    describe(file.create_dataset("parameters/3/b", data=np.ones(4)))
    del file["parameters/3/W"]
    file["parameters/3/W"] = file["parameters/1/W"]


def loop(file):
    del file["parameters/3"]
    file["parameters/3"] = file["/"]


def user_defined_link(file):
    file["parameters/1"].move("W", "V")
    file["parameters/1"]["W"] = h5py.ExternalLink("other.h5", "W")
