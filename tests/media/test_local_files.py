"""Files below root_path while somebody else changes the folder: nothing outside it is ever read."""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tiny_vision import clip, encoded, load, load_video, picture, video_file
from winnow import DocumentError
from winnow.media.images import MediaLoader
from winnow.media.limits import MAX_BYTES, MediumError
from winnow.media.local_files import read_below

INSIDE, SECRET = b"inside", b"secret"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with maps/china.png, beside one with a secret of the same name."""
    for folder, data in ((tmp_path / "images" / "maps", INSIDE), (tmp_path / "outside", SECRET)):
        folder.mkdir(parents=True)
        (folder / "china.png").write_bytes(data)
    return tmp_path / "images"


def link_file(root: Path) -> None:
    (root / "maps" / "china.png").unlink()
    (root / "maps" / "china.png").symlink_to(root.parent / "outside" / "china.png")


def link_folder(root: Path) -> None:
    (root / "maps").rename(root / "was")
    (root / "maps").symlink_to(root.parent / "outside")


def pipe(root: Path) -> None:
    (root / "maps" / "china.png").unlink()
    os.mkfifo(root / "maps" / "china.png")


@pytest.mark.parametrize("swap", [link_file, link_folder, pipe])
def test_a_swap_after_the_check_is_refused(
    root: Path, swap: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.path.realpath

    def and_swap(path: Any, **options: Any) -> str:
        found = real(path, **options)
        if os.fspath(path).endswith("china.png"):
            swap(root)
        return found

    monkeypatch.setattr("os.path.realpath", and_swap)
    with pytest.raises(MediumError, match=r"does not lie below root_path|there is no file"):
        read_below(root, "maps/china.png")


@contextlib.contextmanager
def swapping(root: Path) -> Iterator[None]:
    """A thread that makes the file a link, and then the folder, and takes it back, again and again."""
    over = threading.Event()
    file, folder = root / "maps" / "china.png", root / "maps"
    link, kept = root / "link", root / "kept"

    def swap() -> None:
        while not over.is_set():
            os.link(file, kept)
            link.symlink_to(root.parent / "outside" / "china.png")
            link.replace(file)
            kept.replace(file)
            folder.rename(kept)
            folder.symlink_to(root.parent / "outside")
            folder.unlink()
            kept.rename(folder)

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def test_a_thread_that_swaps_links_in_gets_nothing_out(root: Path) -> None:
    read = refused = 0
    with swapping(root):
        while read < 2000 or refused < 2000:
            try:
                assert read_below(root, "maps/china.png") == INSIDE
                read += 1
            except MediumError:
                refused += 1


def test_links_that_stay_inside_are_followed(root: Path) -> None:
    """Folders of data sets are full of them: git-annex, DVC, Kubernetes' volumes."""
    (root / "file.png").symlink_to(root / "maps" / "china.png")
    (root / "folder").symlink_to("maps")
    (root / "maps" / "back.png").symlink_to("../file.png")
    (root / "round").symlink_to("round")
    (root / "out").symlink_to("../outside")
    (root / "through.png").symlink_to("out/../images/maps/china.png")  # out of it and in again
    (root.parent / "alias").symlink_to(root)
    for path in ("file.png", "folder/china.png", "folder/back.png", f"{root}/folder/china.png", b"file.png"):
        assert read_below(root, path) == INSIDE
    assert read_below(root.parent / "alias", str(root.parent / "alias" / "folder" / "china.png")) == INSIDE
    assert read_below(root.parent / "alias", str(root / "file.png")) == INSIDE
    for path in ("out/china.png", "out/../images/maps/china.png", "folder/../maps/china.png"):
        with pytest.raises(MediumError, match="does not lie below root_path"):
            read_below(root, path)
    for path in ("round", "round/china.png"):
        with pytest.raises(MediumError, match=r"does not lie below root_path|there is no file"):
            read_below(root, path)
    assert read_below(root, "through.png") == INSIDE


@pytest.mark.parametrize("given", ["images", "images/", "./images", "~/images", "other/../images", "other/..", "~"])
def test_the_folder_may_be_written_in_many_ways(given: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root.parent / "other").mkdir()
    monkeypatch.chdir(root.parent)
    monkeypatch.setenv("HOME", str(root.parent))
    loader = MediaLoader(given)
    below = "images/maps/china.png" if given in ("other/..", "~") else "maps/china.png"
    expanded = os.path.expanduser(given)  # noqa: PTH111 - as users do it
    # The last is how Haystack's integration names a file.
    for path in (below, f"./{below}", str(root / "maps" / "china.png"), str(Path(expanded, below).absolute())):
        assert loader._bytes(path) == INSIDE
    for path in ("../outside/china.png", f"{root}/../outside/china.png", "~/outside/china.png"):
        with pytest.raises(MediumError, match=r"does not lie below root_path|there is no file"):
            MediaLoader(root)._bytes(path)


def test_no_descriptor_is_left_open(root: Path) -> None:
    (root / "maps" / "large.png").write_bytes(bytes(MAX_BYTES + 1))
    os.mkfifo(root / "pipe.png")
    (root / "link.png").symlink_to("/etc/passwd")
    descriptors = Path("/proc/self/fd")
    if not descriptors.exists():
        pytest.skip("nothing here says which descriptors are open")
    before = sorted(descriptors.iterdir())
    for path in ("maps/china.png", "maps", "", "pipe.png", "link.png", "maps/none/x.png", "maps/large.png"):
        with contextlib.suppress(MediumError):
            read_below(root, path)
    assert sorted(descriptors.iterdir()) == before


def test_images_frames_and_videos_are_all_read_that_way(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = clip(4)
    (root.parent / "outside" / "map.png").write_bytes(encoded(frames[0]))
    (root.parent / "outside" / "clip.mp4").write_bytes(video_file(frames))
    (root / "maps" / "map.png").write_bytes(encoded(picture(64, 64)))
    (root / "maps" / "clip.mp4").write_bytes(video_file(frames))
    real = os.path.realpath
    resolved = []

    def and_swap(path: Any, **options: Any) -> str:
        found = real(path, **options)
        if not (root / "was").exists() and Path(os.fspath(path)).suffix:
            resolved.append(found)
            link_folder(root)
        return found

    monkeypatch.setattr("os.path.realpath", and_swap)
    attempts: list[Callable[[], object]] = [
        lambda: load("maps/map.png", root),
        lambda: load_video(["maps/map.png"] * 2, root),
        lambda: load_video("maps/clip.mp4", root),
    ]
    for attempt in attempts:
        with pytest.raises(DocumentError, match="there is no file"):
            attempt()
        (root / "maps").unlink()
        (root / "was").rename(root / "maps")
    assert len(resolved) == 3
