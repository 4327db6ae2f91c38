"""Files and folders that appear whole or not at all: whoever dies when, whoever writes at once, whatever is full."""

from __future__ import annotations

import contextlib
import errno
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

import moddit
from moddit import files
from moddit.errors import FormatError, OutputExistsError, StorageError
from moddit.files import check_folder, new_file, new_folder, recover
from moddit.signals import STOP_SIGNALS, Stopped, end_on_stop, raise_if_stopped, uninterrupted

ROOT: Final = Path(moddit.__file__).parents[1]
OLD: Final = {"manifest": "old", "a/weights": "old" * 1000}
NEW: Final = {"manifest": "new", "a/weights": "new" * 2000, "b": "more"}
# Writes NEW over what is at its first argument, and dies at the line event of its second in moddit/files.py.
PROGRAM: Final = """
import os, signal, sys
from pathlib import Path
from moddit import files
target, last, number = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
count = 0
def trace(frame, event, argument):
    global count
    if frame.f_code.co_filename != files.__file__:
        return None
    if event == "line":
        count += 1
        if count == last:
            os.kill(os.getpid(), number)
    return trace
def write():
    sys.settrace(trace)
    if target.suffix:
        with files.new_file(target, overwrite=True) as file:
            file.write(b"new")
    else:
        with files.new_folder(target, kind="thing", may_replace=lambda _: True) as folder:
            for name, text in {contents!r}.items():
                (folder / name).parent.mkdir(exist_ok=True)
                (folder / name).write_text(text)
    sys.settrace(None)
    return 0
if number == signal.SIGKILL:
    write()
else:
    from moddit.signals import end_on_stop
    sys.exit(end_on_stop(write))
"""


def fill(folder: Path, contents: dict[str, str]) -> None:
    for name, text in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def read(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def write(target: Path, contents: dict[str, str], may_replace: Callable[[Path], bool] | None = None) -> None:
    with new_folder(target, kind="thing", may_replace=may_replace) as folder:
        fill(folder, contents)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def die(target: Path, last: int, number: int) -> int:
    """Run PROGRAM; return its exit status."""
    program = PROGRAM.replace("{contents!r}", repr(NEW))
    arguments = [sys.executable, "-S", "-c", program, str(target), str(last), str(number)]
    environment = {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(arguments, env=environment, stderr=subprocess.DEVNULL, check=False).returncode


class TestKilled:
    """At every line of moddit/files.py that a writer runs, one writer dies; the next puts everything right."""

    @pytest.mark.parametrize("is_there", [False, True])
    @pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
    def test_a_folder(self, tmp_path: Path, number: int, is_there: bool) -> None:
        for last in self._lines():
            folder = tmp_path / str(last)
            folder.mkdir()
            target = folder / "bundle"
            if is_there:
                fill(target, OLD)
            status = die(target, last, number)
            if status == 0:
                break
            assert status == (-number if number == signal.SIGKILL else 128 + number)
            if target.exists():
                assert read(target) in (OLD, NEW) if is_there else read(target) == NEW
            elif is_there:
                assert number == signal.SIGKILL  # in the middle of a swap, which a signal waits for
            recover(target)
            assert names(folder) == (["bundle"] if is_there or target.exists() else [])
            assert not target.exists() or read(target) in (OLD, NEW)
        else:
            pytest.fail("never came to the end")
        assert last > 40

    @pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
    def test_a_file(self, tmp_path: Path, number: int) -> None:
        for last in self._lines():
            folder = tmp_path / str(last)
            folder.mkdir()
            (folder / "a.png").write_text("old")
            status = die(folder / "a.png", last, number)
            assert (folder / "a.png").read_text() in ("old", "new")
            if status == 0:
                break
            recover(folder / "a.png")
            assert names(folder) == ["a.png"]
        else:
            pytest.fail("never came to the end")

    @staticmethod
    def _lines() -> Iterator[int]:
        yield from range(1, 400)


class TestFolders:
    def test_appears_when_it_is_whole(self, tmp_path: Path) -> None:
        with new_folder(tmp_path / "a" / "bundle", kind="thing", may_replace=None) as folder:
            fill(folder, NEW)
            assert not (tmp_path / "a" / "bundle").exists()
        assert read(tmp_path / "a" / "bundle") == NEW
        assert names(tmp_path / "a") == ["bundle"]

    def test_what_is_written_whole_within_it_does_not_wait_for_it(self, tmp_path: Path) -> None:
        with new_folder(tmp_path / "bundle", kind="thing", may_replace=None) as folder:
            with new_file(folder / "report.json", overwrite=True) as file:
                file.write(b"{}")
            write(folder / "part", OLD)
        assert read(tmp_path / "bundle") == {
            "report.json": "{}",
            **{f"part/{name}": text for name, text in OLD.items()},
        }

    def test_a_failure_leaves_the_old_one_alone(self, tmp_path: Path) -> None:
        fill(tmp_path / "bundle", OLD)

        def fail() -> None:
            with new_folder(tmp_path / "bundle", kind="thing", may_replace=lambda _: True) as folder:
                fill(folder, NEW)
                raise KeyError

        with pytest.raises(KeyError):
            fail()
        assert read(tmp_path / "bundle") == OLD
        assert names(tmp_path) == ["bundle"]

    @pytest.mark.parametrize("what", ["file", "link", "dangling", "folder"])
    def test_what_is_no_thing_stays(self, tmp_path: Path, what: str) -> None:
        target = tmp_path / "bundle"
        fill(tmp_path / "elsewhere", OLD)
        if what == "file":
            target.touch()
        elif what == "folder":
            fill(target, OLD)
        else:
            target.symlink_to(tmp_path / ("elsewhere" if what == "link" else "nowhere"))
        before = names(tmp_path)
        with pytest.raises(OutputExistsError, match="is not a thing, so it is not replaced"):
            write(target, NEW, lambda _: False)
        with pytest.raises(OutputExistsError, match="exists already"):
            write(target, NEW)
        assert names(tmp_path) == before
        assert read(tmp_path / "elsewhere") == OLD

    def test_an_empty_folder_may_be_replaced(self, tmp_path: Path) -> None:
        (tmp_path / "bundle").mkdir()
        write(tmp_path / "bundle", NEW, lambda _: False)
        assert read(tmp_path / "bundle") == NEW

    def test_another_writer_that_was_faster_is_not_overwritten(self, tmp_path: Path) -> None:
        def write_meanwhile() -> None:
            with new_folder(tmp_path / "bundle", kind="thing", may_replace=None) as folder:
                fill(folder, NEW)
                write(tmp_path / "bundle", OLD)

        with pytest.raises(OutputExistsError, match="exists already"):
            write_meanwhile()
        assert read(tmp_path / "bundle") == OLD
        assert names(tmp_path) == ["bundle"]

    def test_the_old_one_comes_back_if_the_new_one_cannot_be_moved(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fill(tmp_path / "bundle", OLD)
        rename = Path.rename

        def fail(path: Path, target: Path) -> Path:
            if path.name.endswith(files.PARTIAL):
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return rename(path, target)

        monkeypatch.setattr(Path, "rename", fail)
        with pytest.raises(StorageError, match="Input/output error"):
            write(tmp_path / "bundle", NEW, lambda _: True)
        assert read(tmp_path / "bundle") == OLD
        assert names(tmp_path) == ["bundle"]

    def test_once_the_new_one_is_there_nothing_fails(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        fill(tmp_path / "bundle", OLD)
        rename = Path.rename

        def fail(path: Path, target: Path) -> Path:
            if path.name.endswith(files.OLD):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return rename(path, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "rename", fail)
            write(tmp_path / "bundle", NEW, lambda _: True)
        assert read(tmp_path / "bundle") == NEW
        recover(tmp_path / "bundle")
        assert names(tmp_path) == ["bundle"]

    def test_other_names_are_not_swept(self, tmp_path: Path) -> None:
        others = [".bundle.partial", ".bundle.0123456g.partial", ".other.01234567.partial", "bundle.01234567.old"]
        for name in others:
            (tmp_path / name).mkdir()
        write(tmp_path / "bundle", NEW)
        assert names(tmp_path) == sorted([*others, "bundle"])


class TestFiles:
    def test_a_file_is_there_when_it_is_whole(self, tmp_path: Path) -> None:
        with new_file(tmp_path / "a" / "x.png", overwrite=False) as file:
            file.write(b"new")
            assert not (tmp_path / "a" / "x.png").exists()
        assert (tmp_path / "a" / "x.png").read_bytes() == b"new"
        assert names(tmp_path / "a") == ["x.png"]

    def test_a_link_is_replaced_and_not_followed(self, tmp_path: Path) -> None:
        (tmp_path / "elsewhere").write_text("old")
        (tmp_path / "x.png").symlink_to(tmp_path / "elsewhere")
        with pytest.raises(OutputExistsError), new_file(tmp_path / "x.png", overwrite=False):
            pass
        with new_file(tmp_path / "x.png", overwrite=True) as file:
            file.write(b"new")
        assert (tmp_path / "elsewhere").read_text() == "old"
        assert not (tmp_path / "x.png").is_symlink()

    def test_a_folder_is_no_file(self, tmp_path: Path) -> None:
        (tmp_path / "x.png").mkdir()
        with pytest.raises(OutputExistsError, match="is a folder"), new_file(tmp_path / "x.png", overwrite=True):
            pass

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
    def test_a_full_disk(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(_: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "fsync", fail)
        with pytest.raises(StorageError, match="disk is full"), new_file(tmp_path / "x.png", overwrite=False) as file:
            file.write(b"new")
        assert names(tmp_path) == []

    def test_what_does_not_fit_is_one_error(self, tmp_path: Path) -> None:
        """More than a buffer holds, so that writing it fails, and then closing the file."""
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
        try:
            with (
                pytest.raises(StorageError, match=r"x\.png: cannot be written \(File too large\)"),
                new_file(tmp_path / "x.png", overwrite=False) as file,
            ):
                file.write(bytes(100_000))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert names(tmp_path) == []

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
    def test_a_folder_that_may_not_be_written(self, tmp_path: Path) -> None:
        tmp_path.chmod(0o500)
        with pytest.raises(StorageError, match="Permission denied"), new_file(tmp_path / "x", overwrite=False):
            pass


def _write_often(target: Path, text: str, count: int, failures: Any) -> None:
    for _ in range(count):
        try:
            write(target, {"a": text, "b": text}, lambda _: True)
        except BaseException as error:  # noqa: BLE001 # whatever it is, the parent tells
            failures.append(repr(error))


def test_writers_of_one_target_do_not_destroy_each_other(tmp_path: Path) -> None:
    """Six writers replace one folder again and again; a reader sees a whole one, or in a swap none."""
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager:
        failures = manager.list()
        writers = [
            context.Process(target=_write_often, args=(tmp_path / "bundle", text * 1000, 30, failures))
            for text in "abcdef"
        ]
        for writer in writers:
            writer.start()
        seen = 0
        while any(writer.is_alive() for writer in writers):
            seen += _check_whole(tmp_path / "bundle")
            time.sleep(0.001)
        for writer in writers:
            writer.join()
        assert list(failures) == []
    assert seen > 0
    assert names(tmp_path) == ["bundle"]


def _check_whole(bundle: Path) -> bool:
    try:
        descriptor = os.open(bundle, os.O_RDONLY)  # this folder, whatever its name becomes
    except FileNotFoundError:
        return False
    try:
        texts = []
        for name in ("a", "b"):
            file = os.open(name, os.O_RDONLY, dir_fd=descriptor)
            with os.fdopen(file) as opened:
                texts.append(opened.read())
    except FileNotFoundError:  # it is being removed
        return False
    finally:
        os.close(descriptor)
    assert texts[0] == texts[1]
    assert len(texts[0]) == 1000
    return True


@pytest.mark.skipif(
    subprocess.run(["unshare", "--pid", "--fork", "true"], check=False, capture_output=True).returncode != 0
    if Path("/usr/bin/unshare").exists()
    else True,
    reason="needs Linux's process-id namespaces",
)
def test_writers_with_the_same_process_number_do_not_sweep_each_other(tmp_path: Path) -> None:
    """Two containers that share a folder: both programs are process 1, and neither is dead."""
    program = (
        "import sys, time\nfrom pathlib import Path\nfrom moddit.files import new_folder\n"
        "with new_folder(Path(sys.argv[1]), kind='thing', may_replace=lambda _: True) as folder:\n"
        "    (folder / 'a').write_text(sys.argv[2])\n    print('there', flush=True)\n    sys.stdin.readline()\n"
    )
    command = ["unshare", "--pid", "--fork", sys.executable, "-c", program, str(tmp_path / "bundle")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": environment}
    writers = [subprocess.Popen([*command, text], **pipes) for text in ("one", "two")]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "there\n"
    assert len(list(tmp_path.glob(".bundle.*.partial"))) == 2
    assert [writer.communicate("\n")[0] for writer in writers] == ["", ""]
    assert [writer.returncode for writer in writers] == [0, 0]
    assert read(tmp_path / "bundle")["a"] in ("one", "two")
    assert names(tmp_path) == ["bundle"]


class TestSignals:
    @pytest.mark.parametrize("number", STOP_SIGNALS)
    def test_a_program_ends_with_the_status_of_the_signal(
        self, number: int, capsys: pytest.CaptureFixture[str]
    ) -> None:
        before = signal.getsignal(number)

        def program() -> int:
            os.kill(os.getpid(), number)
            return 0

        assert end_on_stop(program) == 128 + number
        assert capsys.readouterr().err == "interrupted\n"
        assert signal.getsignal(number) is before
        raise_if_stopped()  # the next program was not stopped

    def test_a_signal_waits_for_the_end_of_a_block(self) -> None:
        reached = []

        def program() -> int:
            with uninterrupted():
                with uninterrupted():
                    os.kill(os.getpid(), signal.SIGTERM)
                    reached.append("inner")
                reached.append("outer")
            reached.append("after")
            return 0

        assert end_on_stop(program) == 128 + signal.SIGTERM
        assert reached == ["inner", "outer"]

    def test_a_signal_that_a_library_swallowed_is_raised_again(self, tmp_path: Path) -> None:
        def program() -> int:
            with new_folder(tmp_path / "bundle", kind="thing", may_replace=None) as folder:
                fill(folder, NEW)
                with contextlib.suppress(BaseException):  # as libraries do
                    os.kill(os.getpid(), signal.SIGINT)
            return 0

        assert end_on_stop(program) == 128 + signal.SIGINT
        assert names(tmp_path) == []

    def test_other_threads_write_too(self, tmp_path: Path) -> None:
        thread = threading.Thread(target=write, args=(tmp_path / "bundle", NEW))
        thread.start()
        thread.join()
        assert read(tmp_path / "bundle") == NEW

    def test_stopped_is_no_failure(self) -> None:
        assert not issubclass(Stopped, Exception)


def test_check_folder_says_what_it_wants(tmp_path: Path) -> None:
    check_folder(tmp_path / "nothing", kind="thing", may_replace=None)
    with pytest.raises(OutputExistsError, match="replace it with --overwrite"):
        check_folder(tmp_path, kind="thing", may_replace=None)


def test_a_name_cannot_write_a_line_of_its_own(tmp_path: Path) -> None:
    target = tmp_path / "a\nerror: none"
    target.touch()
    with pytest.raises(OutputExistsError, match=r"a\\nerror: none exists"), new_file(target, overwrite=False):
        pass


@pytest.mark.parametrize("name", ["lost", "sub/lost", "../lost"])
def test_what_cannot_be_read_is_not_blamed_on_the_output(tmp_path: Path, name: str) -> None:
    (tmp_path / "work/sub").mkdir(parents=True)
    target, lost = tmp_path / "work/out", tmp_path / "work" / name
    with (
        pytest.raises(FormatError, match=r"^\[source\] .*lost: cannot be read \(No such file"),
        new_folder(target, kind="thing", may_replace=None),
    ):
        lost.read_bytes()
    with (
        pytest.raises(StorageError, match=rf"^\[output\] {target}: cannot be written"),
        new_folder(target, kind="thing", may_replace=None) as folder,
    ):
        (folder / "lost" / "file").write_bytes(b"")
    assert names(tmp_path / "work") == ["sub"]
