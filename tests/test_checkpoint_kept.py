"""The last two checkpoints: both whole at any moment, whatever the system answers and whenever it is killed."""

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from checkpointing import number_of, small_checkpoint
from faults import ERRORS, Faults

from mlpkit import InvalidArgumentError, ModelFormatError, durable
from mlpkit.checkpoint import describe_checkpoint, previous_path, read_checkpoint, write_checkpoint

POSIX = pytest.mark.skipif(os.name == "nt", reason="permission bits, locks and hard links of POSIX")


@pytest.fixture
def run(tmp_path):
    write_checkpoint(tmp_path / "run.h5", small_checkpoint())
    return tmp_path / "run.h5"


def write(path, number):
    write_checkpoint(path, small_checkpoint(number=number))


def test_previous_path():
    assert previous_path("run.h5") == "run.previous.h5"
    assert previous_path(Path("a.b", "run")) == os.path.join("a.b", "run.previous")
    assert previous_path(b"x.tar.h5") == "x.tar.previous.h5"


def test_the_last_two_are_kept(tmp_path):
    for number in range(5):
        write(tmp_path / "run.h5", number)
        assert number_of(tmp_path / "run.h5") == number
        if number:
            assert number_of(tmp_path / "run.previous.h5") == number - 1
        assert len(os.listdir(tmp_path)) == min(number + 1, 2)


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOTSUP, errno.EXDEV])
@POSIX
def test_without_hard_links_the_old_one_is_copied(tmp_path, monkeypatch, number):
    def link(*arguments):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", link)
    monkeypatch.setattr(durable, "_COPIED_AT_A_TIME", 1000)
    write(tmp_path / "run.h5", 0)
    (tmp_path / "run.h5").chmod(0o600)
    for k in (1, 2):
        write(tmp_path / "run.h5", k)
        assert [number_of(tmp_path / name) for name in ("run.h5", "run.previous.h5")] == [k, k - 1]
        assert len(os.listdir(tmp_path)) == 2
        assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o600}


def test_what_a_kill_left_does_not_stand_in_the_way(tmp_path):
    (tmp_path / ".mlpkit-run.previous.h5.old").write_bytes(b"half")
    write(tmp_path / "run.h5", 0)
    write(tmp_path / "run.h5", 1)
    os.link(tmp_path / "run.h5", tmp_path / "link")  # two names of one file, which rename would leave as they are
    os.replace(tmp_path / "link", tmp_path / "run.previous.h5")
    write(tmp_path / "run.h5", 2)
    assert sorted(os.listdir(tmp_path)) == ["run.h5", "run.previous.h5"]
    assert [number_of(tmp_path / name) for name in ("run.h5", "run.previous.h5")] == [2, 1]


@POSIX
def test_links_are_followed_and_never_lead_to_the_new_file_being_lost(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "run.h5").symlink_to(Path("far", "real.h5"))
    for number in range(3):
        write(tmp_path / "run.h5", number)
    assert (tmp_path / "run.h5").is_symlink()
    assert [number_of(tmp_path / name) for name in ("far/real.h5", "run.previous.h5")] == [2, 1]
    assert sorted(os.listdir(tmp_path)) == ["far", "run.h5", "run.previous.h5"]
    write(tmp_path / "other.previous.h5", 5)
    (tmp_path / "other.h5").symlink_to("other.previous.h5")
    with pytest.raises(InvalidArgumentError, match=r"path: is a link to .*other\.previous\.h5', where the file before"):
        write(tmp_path / "other.h5", 6)
    assert number_of(tmp_path / "other.h5") == 5


def test_where_the_old_one_cannot_be_kept(tmp_path, run):
    (tmp_path / "run.previous.h5").mkdir()
    with pytest.raises(InvalidArgumentError, match=r"path: expected the name of a file, .*run\.previous\.h5"):
        write(run, 1)
    assert number_of(run) == 0
    assert sorted(os.listdir(tmp_path)) == ["run.h5", "run.previous.h5"]


def test_a_missing_or_damaged_checkpoint_s_error_names_a_whole_one_before_it(tmp_path, run):
    hint = r"but the checkpoint before it, '.*run\.previous\.h5', is whole: give that path to go on from it"
    write(run, 1)
    run.write_bytes(run.read_bytes()[:-1])
    for call in (read_checkpoint, describe_checkpoint):
        with pytest.raises(ModelFormatError, match=rf"run\.h5: file: .*truncated; {hint[4:]}"):
            call(run)
    run.unlink()
    with pytest.raises(FileNotFoundError, match=hint) as caught:
        read_checkpoint(run)
    assert caught.value.filename == str(run)
    assert number_of(previous_path(run)) == 0
    Path(previous_path(run)).write_bytes(b"")
    with pytest.raises(FileNotFoundError) as caught:
        read_checkpoint(run)
    assert "whole" not in str(caught.value)
    run.write_bytes(b"")
    with pytest.raises(ModelFormatError, match=r"file: is empty$"):
        read_checkpoint(run)


@POSIX
@pytest.mark.parametrize("error", [ERRORS[0], ERRORS[2], KeyboardInterrupt()], ids=str)
@pytest.mark.parametrize("links", [True, False])
def test_an_error_at_any_system_call_leaves_two_whole_files(tmp_path, monkeypatch, error, links):
    path, before = tmp_path / "run.h5", str(tmp_path / "run.previous.h5")
    if not links:

        def link(*arguments):
            raise OSError(errno.ENOTSUP, "Operation not supported")

        monkeypatch.setattr(os, "link", link)
    content = []
    for number in range(3):
        write(path, number)
        content.append(path.read_bytes())
    seen = set()
    for k in range(1000):
        path.write_bytes(content[1])
        Path(before).write_bytes(content[0])
        path.chmod(0o604)
        with monkeypatch.context() as patch:
            faults = Faults(patch, k, error)
            try:
                write(path, 2)
                raised = None
            except (OSError, KeyboardInterrupt) as found:
                raised = found
        assert not isinstance(raised, OSError) or raised.errno == error.errno
        if faults.failed is None:
            assert raised is None
            break
        seen.add(faults.failed)
        found = [content.index(Path(name).read_bytes()) for name in (path, before)]
        assert found in ([1, 0], [2, 1], [2, 0])
        assert raised is not None or found == [2, 1]
        assert set(os.listdir(tmp_path)) - {"run.h5", "run.previous.h5"} <= {".mlpkit-run.previous.h5.old"}
    assert found == [2, 1]
    assert sorted(os.listdir(tmp_path)) == ["run.h5", "run.previous.h5"]
    assert seen >= {"open", "write", "read", "os.fsync", "os.replace", "os.open", "os.unlink", "os.link", "os.lstat"}


@POSIX
def test_errors_say_what_became_of_the_files(tmp_path, monkeypatch, run):
    write(run, 1)
    full = OSError(errno.ENOSPC, "No space left on device")
    with monkeypatch.context() as patch:
        Faults(patch, ("write", 3), full)
        with pytest.raises(OSError, match=r"cannot save \(No space left on device\); the file there is as it was"):
            write(run, 2)
    assert number_of(run) == 1
    with monkeypatch.context() as patch:
        Faults(patch, ("os.replace", 2), full)
        with pytest.raises(OSError, match=r"saved; but .* cannot be kept under this name \(No .*previous\.h5"):
            write(run, 2)
    assert [number_of(path) for path in (run, previous_path(run))] == [2, 0]


@POSIX
def test_the_new_file_is_on_the_disk_before_it_takes_the_old_one_s_place(run, monkeypatch):
    with monkeypatch.context() as patch:
        faults = Faults(patch)
        write(run, 1)
    wanted = {"os.fsync", "os.replace", "os.link"}
    order = [name for name in faults.calls if name in wanted]
    assert order == ["os.link", "os.fsync", "os.replace", "os.replace", "os.fsync"]


@POSIX
@pytest.mark.parametrize("times", [20, pytest.param(200, marks=pytest.mark.soak)])
def test_killed_at_random_moments(times):
    """Twenty times here; two hundred in `make soak`."""
    program = Path(__file__).with_name("checkpointing.py")
    done = subprocess.run([sys.executable, str(program), str(times)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
