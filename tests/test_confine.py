"""What the kernel forbids a confined process, and what ends with what."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from bench import confine

needs_landlock = pytest.mark.skipif(
    not confine.landlock_version(), reason="the kernel has no Landlock"
)
needs_scopes = pytest.mark.skipif(
    confine.landlock_version() < 6, reason="the kernel's Landlock has no scopes"
)


def script(text: str, *arguments: object) -> subprocess.Popen[str]:
    """Start Python on `text`, with `confine`, `os`, `signal`, `sys`, `time` and `Path` at hand."""
    heading = "import os, signal, sys, time\nfrom pathlib import Path\nfrom bench import confine\n"
    return subprocess.Popen(
        [sys.executable, "-c", heading + textwrap.dedent(text), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def printed(text: str, *arguments: object) -> str:
    process = script(text, *arguments)
    out, errors = process.communicate(timeout=20)
    assert process.returncode == 0, errors
    return out.strip()


ATTEMPT = """
    own, other = Path(sys.argv[1]), Path(sys.argv[2])
    assert confine.confine_writes([own], [Path(os.devnull)])

    def attempt(folder):
        target = folder / "there"
        ways = {
            "overwrite": lambda: target.write_text("mine"),
            "append": lambda: target.open("a").write("more"),
            "truncate": lambda: os.truncate(target, 0),
            "create": lambda: (folder / "new").write_text("new"),
            "mkdir": lambda: (folder / "folder").mkdir(),
            "symlink": lambda: (folder / "link").symlink_to(target),
            "fifo": lambda: os.mkfifo(folder / "fifo"),
            "rename": lambda: target.rename(folder / "renamed"),
            "remove": lambda: next(iter(folder.glob("*e*"))).unlink(),
        }
        worked = []
        for name, way in ways.items():
            try:
                way()
                worked.append(name)
            except PermissionError:
                pass
        return " ".join(worked)

    if len(sys.argv) > 3:  # what a grandchild may do
        child = os.fork()
        if child:
            os.waitpid(child, 0)
            sys.exit()
    print(attempt(own), "|", attempt(other), flush=True)
"""


@needs_landlock
@pytest.mark.parametrize("who", [[], ["grandchild"]])
def test_writes_outside_are_denied_and_inside_allowed(tmp_path: Path, who: list[str]) -> None:
    own, other = tmp_path / "own", tmp_path / "other"
    for folder in (own, other):
        folder.mkdir()
        (folder / "there").write_text("content")
    inside, outside = printed(ATTEMPT, own, other, *who).split("|")
    everything = "overwrite append truncate create mkdir symlink fifo rename remove"
    assert inside.strip() == everything
    assert outside.strip() == ""
    assert [p.name for p in other.iterdir()] == ["there"]
    assert (other / "there").read_text() == "content"


@needs_landlock
def test_files_move_neither_out_nor_in(tmp_path: Path) -> None:
    own, other = tmp_path / "own", tmp_path / "other"
    for folder in (own, other):
        folder.mkdir()
        (folder / folder.name).write_text("content")
    text = """
        own, other = Path(sys.argv[1]), Path(sys.argv[2])
        confine.confine_writes([own], [])
        for source, target in ((own / "own", other / "out"), (other / "other", own / "in")):
            for way in (os.rename, os.link):
                try:
                    way(source, target)
                    print("moved", source)
                except OSError:
                    print("denied")
    """
    assert printed(text, own, other).split() == ["denied"] * 4


@needs_landlock
def test_reading_and_the_null_device_stay_free(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "read").write_text("content")
    text = """
        confine.confine_writes([Path(sys.argv[1])], [Path(os.devnull)])
        Path(os.devnull).write_text("nothing")
        print(Path(sys.argv[2]).read_text())
    """
    assert printed(text, tmp_path / "own", tmp_path / "read") == "content"


@needs_landlock
def test_folders_that_do_not_exist_are_passed_over(tmp_path: Path) -> None:
    text = "print(confine.confine_writes([Path(sys.argv[1]) / 'absent'], []))"
    assert printed(text, tmp_path) == "True"


READ = """
    def read(path):
        try:
            return Path(path).read_text()
        except PermissionError:
            return "denied"
"""


@needs_landlock
def test_hidden_files_are_unreadable_but_for_the_shown(tmp_path: Path) -> None:
    """What a child starts included; a link does not help; names stay, writing is another right."""
    for name in ("data/labels", "data/own/images", "data/own/labels", "beside", "code/plugin"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "link").symlink_to(tmp_path / "data")
    text = (
        READ
        + """
    here = Path(sys.argv[1])
    opened = (here / "data/labels").open()
    hidden = [here / "link", here / "absent"]
    assert confine.hide(hidden, [here / "data/own/images", here / "nothing"])
    for name in ("data/labels", "link/labels", "data/own/labels", "data/own/images", "beside",
                 "code/plugin"):
        print(read(here / name))
    print(opened.read(), sorted(os.listdir(here / "data")))
    (here / "data/labels").write_text("written")
    (here / "absent").write_text("later")
    (here / "new").write_text("later")
    print(read(here / "absent"), read(here / "new"), read(os.devnull) == "")
    if os.fork() == 0:
        print("a child:", read(here / "data/labels"), flush=True)
        os._exit(0)
    os.wait()
"""
    )
    assert printed(text, tmp_path).splitlines() == [
        "denied",
        "denied",
        "denied",
        "data/own/images",
        "beside",
        "code/plugin",
        "data/labels ['labels', 'own']",
        "denied denied True",
        "a child: denied",
    ]


@needs_landlock
def test_both_restrictions_hold_together(tmp_path: Path) -> None:
    for name in ("own", "secret"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    text = (
        READ
        + """
    own, secret = Path(sys.argv[1]), Path(sys.argv[2])
    assert confine.confine_writes([own], []) and confine.hide([secret])
    (own / "file").write_text("mine")
    print(read(own / "file"), read(secret / "file"))
    try:
        (secret / "file").write_text("mine")
    except PermissionError:
        print("denied")
"""
    )
    assert printed(text, tmp_path / "own", tmp_path / "secret").split() == [
        "mine",
        "denied",
        "denied",
    ]


@needs_landlock
@pytest.mark.parametrize("name", ["digits", "fashion-mnist"])
def test_a_data_set_whose_places_are_hidden_cannot_be_loaded(name: str) -> None:
    text = """
        from bench import data
        from bench.errors import UserError
        name = sys.argv[1]
        try:
            places = data.load(name, image_size=8, test=False).places
        except UserError:
            sys.exit(print("absent"))  # not on this machine
        assert confine.hide(places)
        try:
            data.load(name, image_size=8, test=False)
        except UserError as error:
            print("Permission denied" in str(error))
    """
    said = printed(text, name)
    if said == "absent":
        pytest.skip(f"{name} is not installed here")
    assert said == "True"


@needs_scopes
def test_signals_to_processes_outside_are_denied(tmp_path: Path) -> None:
    outside = script("time.sleep(20)")
    text = """
        confine.confine_writes([Path(sys.argv[1])], [])
        for pid in (int(sys.argv[2]), os.getppid()):
            try:
                os.kill(pid, signal.SIGKILL)
                print("killed")
            except PermissionError:
                print("denied")
        child = os.fork()
        if child == 0:
            time.sleep(20)
        os.kill(child, signal.SIGKILL)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """
    assert printed(text, tmp_path, outside.pid).split() == ["denied", "denied", "-9"]
    assert outside.poll() is None
    outside.kill()
    outside.communicate()


def test_without_landlock_the_caller_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(confine, "landlock_version", lambda: 0)
    assert not confine.confine_writes([tmp_path / "own"], [])
    assert not confine.hide([tmp_path / "free"])
    (tmp_path / "free").write_text("written")
    assert (tmp_path / "free").read_text() == "written"


def ended(pid: int, seconds: float = 10.0) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.01)
    return False


LINKED = """
    read, write = os.pipe()
    parent = os.getpid()
    if os.fork() == 0:
        os.close(write)
        {link}
        print(os.getpid(), flush=True)
        time.sleep(20)
    time.sleep(20)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's own means")
@pytest.mark.parametrize(
    "link",
    [
        "confine.die_with_parent(signal.SIGKILL, parent)",
        "confine.die_with_writer(signal.SIGTERM, read)",
    ],
)
def test_process_dies_with_the_one_it_is_linked_to(link: str) -> None:
    process = script(LINKED.format(link=link))
    child = int(process.stdout.readline())
    assert not ended(child, seconds=0.1)
    process.kill()
    process.wait()
    assert ended(child)
    process.communicate()


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's own means")
@pytest.mark.parametrize(
    "link",
    [
        "confine.die_with_parent(signal.SIGTERM, 1)",
        "os.close(write); confine.die_with_writer(signal.SIGTERM, read)",
    ],
)
def test_link_to_one_that_is_gone_takes_effect_at_once(link: str) -> None:
    process = script(f"read, write = os.pipe()\n{link}\ntime.sleep(20)")
    assert process.wait(timeout=10) == -signal.SIGTERM
    process.communicate()


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's own means")
def test_orphans_are_adopted_counted_and_killed() -> None:
    text = """
        confine.adopt_orphans()
        read, write = os.pipe()
        if os.fork() == 0:
            os.setsid()
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            if os.fork() == 0:
                os.write(write, b"1")
                time.sleep(20)
            os._exit(0)
        os.read(read, 1)
        os.wait()
        print(len(confine.kill_all(os.getpid())), confine.descendants(os.getpid()))
    """
    assert printed(text) == "1 []"


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's own means")
def test_memory_of_a_process_is_what_it_touched() -> None:
    text = """
        before = confine.resident_bytes([os.getpid()])
        held = b"x" * (64 * 2**20)
        print(round((confine.resident_bytes([os.getpid()]) - before) / 2**20))
    """
    assert 60 <= int(printed(text)) <= 70
    assert confine.resident_bytes([2**30]) == 0
    assert os.getpid() not in confine.descendants(os.getpid())
