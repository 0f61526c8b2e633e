"""Output files on real folders, links, devices and full disks: what stood there is kept, or replaced whole."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from devices import device, largest_file
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from entropy_chains.core.policy import Policy
from entropy_chains.errors import EntropyChainsError, OutputError, WriteError
from entropy_chains.files import AppendedFile, check_outputs, holds_data, make_folder, write_file

SAME_FOLDER = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def held(folder: Path) -> dict[str, bytes | None]:
    """Everything in a folder: the content of files, None for the rest."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def without_rights() -> Iterator[Path]:
    """A folder that anybody can use, and no right to write anywhere else, even where the tests are run by root."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    user = os.geteuid()
    with suppress(PermissionError):  # others than root have no such rights anyway
        os.seteuid(65534)
    try:
        yield folder
    finally:
        os.seteuid(user)
        for path in [folder, *folder.iterdir()]:
            path.chmod(0o700)
        shutil.rmtree(folder)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(folder)], capture_output=True, check=False
    )
    if not mounted or mounted.returncode:
        pytest.skip("no right to mount a file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


# --- whole or not at all


def test_a_new_file_gets_the_mode_of_the_umask(tmp_path):
    """As if it had been opened for writing; nothing else is left in the folder. Text is UTF-8, bytes stay as they are."""
    before = os.umask(0o027)
    try:
        write_file(tmp_path / "a", "ü\n")
        write_file(str(tmp_path / "b"), b"\xff\x00")
    finally:
        os.umask(before)
    assert held(tmp_path) == {"a": b"\xc3\xbc\n", "b": b"\xff\x00"}
    assert [mode(tmp_path / name) for name in "ab"] == [0o640, 0o640]


@pytest.mark.parametrize("bits", [0o600, 0o644, 0o664, 0o755])
def test_an_existing_file_keeps_its_mode(tmp_path, bits):
    """A private policy stays private, a shared one stays shared."""
    path = tmp_path / "policy.json"
    path.write_text("old")
    path.chmod(bits)
    write_file(path, "new")
    assert (mode(path), path.read_text()) == (bits, "new")


def test_an_existing_file_keeps_its_owner(tmp_path):
    """Root that writes a user's file anew does not take it away from the user."""
    path = tmp_path / "policy.json"
    path.write_text("old")
    try:
        os.chown(path, 1234, 1235)
    except PermissionError:
        pytest.skip("no right to give a file away")
    write_file(path, "new")
    assert (path.stat().st_uid, path.stat().st_gid, path.read_text()) == (1234, 1235, "new")


@given(old=st.none() | st.binary(max_size=300), new=st.binary(min_size=1, max_size=300), room=st.integers(0, 299))
@SAME_FOLDER
def test_what_was_not_written_whole_changes_nothing(tmp_path, old, new, room):
    """A disk that fills up at any byte: the folder is as it was, and the error names the file. Else the new content is there."""
    path = tmp_path / "file"
    path.unlink(missing_ok=True)
    if old is not None:
        path.write_bytes(old)
    before = held(tmp_path)
    if room < len(new):
        with largest_file(room), pytest.raises(WriteError if room else OutputError, match="file cannot be written"):
            write_file(path, new)
        assert held(tmp_path) == before
    else:
        with largest_file(room):
            write_file(path, new)
        assert held(tmp_path) == {"file": new}


@given(old=st.binary(max_size=300), new=st.binary(min_size=1, max_size=300), room=st.integers(0, 600))
@SAME_FOLDER
def test_what_was_not_appended_whole_is_taken_back(tmp_path, old, new, room):
    """The same for a file that is only added to."""
    path = tmp_path / "file"
    path.write_bytes(old)
    with AppendedFile(path) as file, largest_file(room):
        try:
            file.append(new)
        except WriteError:
            assert room < len(old + new)
            assert path.read_bytes() == old
        else:
            assert path.read_bytes() == old + new


def test_a_full_disk_keeps_the_old_file(small_disk):
    """On a real full file system the old policy still loads, an open trace file keeps its lines, and nothing is left over."""
    path = small_disk / "policy.json"
    policy = Policy("m", (0.5,))
    policy.save(path)
    with AppendedFile(small_disk / "t.jsonl") as file:
        file.append(b"a\n")
        with pytest.raises(WriteError, match="No space") as caught:
            file.append(b"b" * 70_000)
        with pytest.raises(WriteError, match="No space"):
            Policy("m", (0.5,), calibration={"note": "x" * 70_000}).save(path)
    assert (caught.value.file, caught.value.errno) == (str(small_disk / "t.jsonl"), 28)
    assert isinstance(caught.value, OSError)
    assert Policy.load(path) == policy
    assert (small_disk / "t.jsonl").read_bytes() == b"a\n"
    assert sorted(os.listdir(small_disk)) == ["policy.json", "t.jsonl"]


def test_a_full_disk_is_found_before_anything_is_spent(small_disk):
    """Where there is no room at all, the output is refused beforehand, and no file is left there."""
    with suppress(OSError):
        (small_disk / "large").write_bytes(b"x" * 100_000)
    with pytest.raises(OutputError, match=r"new\.json cannot be written \(No space"):
        check_outputs([small_disk / "new.json"])
    assert os.listdir(small_disk) == ["large"]


# --- links, pipes, devices


def test_the_target_of_a_link_is_written(tmp_path):
    """Through a chain of links, relative ones and one whose target is not there yet; every link stays a link."""
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a").write_text("old")
    (tmp_path / "one").symlink_to("real/a")
    (tmp_path / "two").symlink_to(tmp_path / "one")
    (tmp_path / "new").symlink_to("real/b")
    write_file(tmp_path / "two", "A")
    write_file(tmp_path / "new", "B")
    with AppendedFile(tmp_path / "two") as file:
        file.append(b"+")
    assert [(tmp_path / name).is_symlink() for name in ("one", "two", "new")] == [True] * 3
    assert held(tmp_path / "real") == {"a": b"A+", "b": b"B"}


def test_a_device_is_written_to_and_stays_a_device(tmp_path):
    """By itself and through a link. Its folder is not asked whether files can be made there."""
    null = device(tmp_path, "null")
    (tmp_path / "link").symlink_to(null)
    for path in (null, tmp_path / "link"):
        write_file(path, "gone")
        with AppendedFile(path) as file:
            file.append(b"gone")
            assert file.is_stream
            assert file.last_line() == b""
        assert path.is_char_device()
    assert null.lstat().st_rdev == Path("/dev/null").stat().st_rdev
    assert (tmp_path / "link").is_symlink()


def test_a_full_device_is_one_clear_error(tmp_path):
    """It names the device and says why, whether written whole or added to; it stays a device."""
    full = device(tmp_path, "full")
    with pytest.raises(WriteError, match=r"/full cannot be written \(No space left on device\)"):
        write_file(full, "x")
    with AppendedFile(full) as file, pytest.raises(WriteError, match=r"/full cannot be written \(No space left on device\)"):
        file.append(b"x")
    assert full.is_char_device()


def test_a_pipe_gets_all_of_it():
    """More than the pipe holds at once arrives, as with a shell's ``>(…)``."""
    reader = subprocess.Popen([sys.executable, "-c", "import sys; print(len(sys.stdin.read()))"], stdin=-1, stdout=-1, text=True)
    name = f"/dev/fd/{reader.stdin.fileno()}"
    write_file(name, "x" * 300_000)
    with AppendedFile(name) as file:
        file.append(b"y" * 200_000)
    assert reader.communicate()[0] == "500000\n"


@pytest.mark.parametrize("way", ["w", "a"])
def test_standard_output_is_written_in_order(tmp_path, way):
    """Also where it goes to a file, which is neither replaced nor written from its start."""
    code = "from entropy_chains.files import AppendedFile, write_file; print('1')\nwrite_file('/dev/fd/1', '2\\n'); print('3')\n"
    code += "with AppendedFile('/dev/fd/1') as file: file.append(b'4\\n')\nprint('5')"
    path = tmp_path / "out"
    path.write_text("0\n")
    with path.open(way) as out:
        subprocess.run([sys.executable, "-c", code], stdout=out, check=True)
    assert path.read_text() == ("0\n" if way == "a" else "") + "1\n2\n3\n4\n5\n"
    assert os.listdir(tmp_path) == ["out"]
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout == b"1\n2\n3\n4\n5\n"


# --- what cannot be an output


def test_a_file_is_no_stream_where_standard_output_is_closed(tmp_path):
    """It may get the descriptor that standard output would have; what it holds is read and recovered all the same."""
    path = tmp_path / "t.jsonl"
    path.write_text('{"id": "a"}\n')
    script = f"from entropy_chains.files import AppendedFile, holds_data; f = AppendedFile({str(path)!r}); f.append(b'x\\n')"
    script += f"; open({str(tmp_path / 'told')!r}, 'w').write(str([f.is_stream, holds_data({str(path)!r})]))"
    subprocess.run(["sh", "-c", '"$0" -c "$1" >&-', sys.executable, script], check=True)
    assert (tmp_path / "told").read_text() == "[False, True]"


def test_two_cannot_add_to_one_file_at_a_time(tmp_path):
    """The second one is refused: taking back what could not be written would take the other's lines along."""
    first = AppendedFile(tmp_path / "t.jsonl")
    with pytest.raises(OutputError, match="by somebody else"):
        AppendedFile(tmp_path / "t.jsonl")
    first.close()
    AppendedFile(tmp_path / "t.jsonl").close()


def unfit(folder: Path) -> dict[str, object]:
    """Names that cannot be written, whoever asks."""
    (folder / "file").write_text("kept")
    (folder / "folder").mkdir()
    (folder / "to_folder").symlink_to("folder")
    (folder / "one").symlink_to("two")
    (folder / "two").symlink_to("one")
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(folder / "socket"))
    names = ["folder", "to_folder", "missing/new", "missing/deeper/new", "file/new", "one", "socket", "x" * 300, "new\0", "new/"]
    return {name: f"{folder}/{name}" for name in names} | {"proc": "/proc/new", "nothing": "", "up": f"{folder}/missing/.."}


def test_what_cannot_be_written_is_refused_and_nothing_is_changed(tmp_path):
    """Folders, missing ones, loops of links, sockets, impossible names: an error names them, in whatever way they are written."""
    for name, path in unfit(tmp_path).items():
        before = held(tmp_path)
        for write in (
            lambda p: check_outputs([p]),
            lambda p: check_outputs([], appended=[p]),
            lambda p: write_file(p, ""),
            AppendedFile,
        ):
            with pytest.raises(OutputError) as caught:
                write(path)
            assert str(caught.value).startswith(f"{path} cannot be written ("), name
        assert held(tmp_path) == before


def test_closed_folders_and_files_are_refused(without_rights):
    """Without the right to write a file, or to make one in its folder, it is not replaced; what may be added to is added to."""
    closed = without_rights / "closed"
    closed.mkdir()
    (closed / "mine").write_text("old\n")
    (without_rights / "read_only").write_text("old\n")
    (without_rights / "read_only").chmod(0o444)
    closed.chmod(0o555)
    before = held(without_rights)
    for path in (closed / "new", closed / "mine", without_rights / "read_only", Path("/proc/version")):
        with pytest.raises(OutputError, match="denied"):
            check_outputs([path])
        with pytest.raises(OutputError, match="denied"):
            write_file(path, "new")
    assert held(without_rights) == before
    check_outputs([], appended=[closed / "mine"])
    with AppendedFile(closed / "mine") as file:
        file.append(b"new\n")
    assert (closed / "mine").read_text() == "old\nnew\n"
    for path in (closed / "new", without_rights / "read_only"):
        with pytest.raises(OutputError, match="denied"):
            AppendedFile(path)


# --- an output that is an input, or another output


@pytest.mark.parametrize("name", ["data", "./data", "folder/../data", "link", "chain", "hard", "linked_folder/inner"])
def test_an_output_that_is_an_input_is_refused(tmp_path, monkeypatch, name):
    """By whatever name the file is reached; the error names both."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    for file in ("data", "folder/inner"):
        (tmp_path / file).write_text("kept")
    (tmp_path / "link").symlink_to("data")
    (tmp_path / "chain").symlink_to("link")
    (tmp_path / "hard").hardlink_to("data")
    (tmp_path / "linked_folder").symlink_to("folder")
    before = held(tmp_path)
    source = "folder/inner" if "inner" in name else str(tmp_path / "data")
    for outputs, inputs, appended in (
        ([name], ["other", source], []),
        ([], [source], [name]),
        ([source], [name], []),
        ([source, name], [], []),
        ([source], [], [name]),
    ):
        with pytest.raises(OutputError, match="is the same file as the") as caught:
            check_outputs(outputs, inputs, appended=appended)
        assert name in str(caught.value)
        assert source in str(caught.value)
    assert held(tmp_path) == before


def test_two_new_outputs_that_are_one_file_are_refused(tmp_path):
    """Also where the file is not there yet, and one of the names is a link to it."""
    (tmp_path / "link").symlink_to("new")
    with pytest.raises(OutputError, match="is the same file as the output"):
        check_outputs([tmp_path / "new", tmp_path / "link"])
    assert os.listdir(tmp_path) == ["link"]


def test_different_files_and_devices_are_no_trouble(tmp_path):
    """Copies are not the same file; a device may be named as often as one likes, for it holds nothing."""
    for name in "ab":
        (tmp_path / name).write_text("equal")
    check_outputs([tmp_path / "b", tmp_path / "c"], [tmp_path / "a", tmp_path / "missing"])
    check_outputs(["/dev/null", "/dev/null"], ["/dev/null"], appended=["/dev/null"])


def test_what_holds_data(tmp_path):
    """Only a file with content can be read back."""
    (tmp_path / "empty").touch()
    (tmp_path / "full").write_text("x")
    found = [holds_data(p) for p in (tmp_path / "full", tmp_path / "empty", tmp_path / "no", tmp_path, "/dev/zero", "a\0")]
    assert found == [True, False, False, False, False, False]


def test_a_folder_is_made_or_refused(tmp_path):
    """With those above it; where a file stands in the way the error names the folder."""
    make_folder(tmp_path / "a" / "b")
    make_folder(tmp_path / "a" / "b")
    (tmp_path / "file").touch()
    for name in ("file", "file/b", "c\0"):
        with pytest.raises(OutputError, match=r"the folder .* cannot be made"):
            make_folder(f"{tmp_path}/{name}")
    assert issubclass(OutputError, EntropyChainsError)
