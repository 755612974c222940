"""Data sets into the cache: what is recorded, trusted and refused, and what the command line says of it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import signal
import zipfile
from functools import partial
from pathlib import Path

import pytest
from file_server import Served, serving
from graph_writers import fitted, write_ogb, write_own, write_planetoid

from pdadmm.cli import datasets as command
from pdadmm.cli import main
from pdadmm.data import DATASETS, Dataset, Remote, csbm, download, load_dataset, transfer
from pdadmm.data.cache import cache_folder
from pdadmm.data.download import download_dataset
from pdadmm.errors import InputError

GRAPH = csbm(40, num_classes=3, num_features=4)


@pytest.fixture(scope="module")
def server():
    with serving() as files:
        yield files


@pytest.fixture
def fetch(tmp_path):
    return partial(download_dataset, cache=tmp_path / "cache", allow_local_http=True)


@pytest.fixture
def tiny(server, tmp_path, monkeypatch):
    """A data set of one .npz file on the server."""
    content = write_own(GRAPH, tmp_path).read_bytes()
    server["tiny.npz"] = Served(content)
    row = Dataset("tiny", "a", 40, GRAPH.num_edges, 4, 3, "60/20/20", "b", "c", ("tiny.npz",), page="https://d",
                  remotes=(Remote(f"{server.url}/tiny.npz", 10**6),))  # fmt: skip
    monkeypatch.setitem(DATASETS, "tiny", row)
    monkeypatch.delenv("PDADMM_DATA", raising=False)
    return row


@pytest.fixture
def zipped(server, tmp_path, monkeypatch):
    """A data set of OGB's form in a zip."""
    folder = write_ogb(GRAPH, tmp_path / "papers")
    with zipfile.ZipFile(tmp_path / "papers.zip", "w") as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, file.relative_to(tmp_path))
    server["papers.zip"] = Served((tmp_path / "papers.zip").read_bytes())
    remote = Remote(f"{server.url}/papers.zip", 10**6, unpacked=("papers", 10**6))
    row = Dataset("ogb-tiny", "a", 40, 0, 4, 3, "time", "b", "c", ("papers",), remotes=(remote,))
    monkeypatch.setitem(DATASETS, "ogb-tiny", row)
    monkeypatch.delenv("PDADMM_DATA", raising=False)
    return row


def test_the_first_download_is_trusted_and_recorded(server, fetch, tiny, tmp_path, monkeypatch):
    folder, (one,) = fetch("tiny")
    digest = hashlib.sha256(server["tiny.npz"].content).hexdigest()
    assert (one.file, one.sha256, one.new, one.trusted) == ("tiny.npz", digest, True, "first use")
    assert folder == tmp_path / "cache" / "tiny"
    assert json.loads((folder / "download.json").read_text()) == {"sha256": {"tiny.npz": digest}}
    assert sorted(path.name for path in folder.iterdir()) == ["download.json", "tiny.npz"]
    _, (again,) = fetch("tiny")
    assert (again.sha256, again.new, again.trusted) == (digest, False, "recorded")
    assert len(server["tiny.npz"].requests) == 1
    monkeypatch.setenv("PDADMM_CACHE", str(tmp_path / "cache"))
    assert load_dataset("tiny").fingerprint() == GRAPH.fingerprint()


def test_a_later_download_must_be_the_same(server, fetch, tiny, tmp_path):
    folder, (one,) = fetch("tiny")
    (folder / "tiny.npz").unlink()
    assert fetch("tiny")[1][0].trusted == "recorded"
    server["tiny.npz"].content += b"more"
    (folder / "tiny.npz").unlink()
    with pytest.raises(InputError, match=f"{one.sha256}, as recorded; it was removed.*remove .*download.json"):
        fetch("tiny")
    assert not (folder / "tiny.npz").exists()
    (folder / "tiny.npz").write_bytes(b"changed here")
    with pytest.raises(InputError, match=f"must be {one.sha256}; the file was changed since"):
        fetch("tiny")
    for text in ("{}", "[", '{"sha256": {"tiny.npz": 3}}'):
        (folder / "download.json").write_text(text)
        with pytest.raises(InputError, match=r"download\.json .*must be a record of checksums"):
            fetch("tiny")


def test_a_published_checksum_counts_from_the_start(server, fetch, tiny, monkeypatch, tmp_path):
    digest = hashlib.sha256(server["tiny.npz"].content).hexdigest()
    (remote,) = tiny.remotes
    for published in ("0" * 64, digest):
        row = dataclasses.replace(tiny, remotes=(dataclasses.replace(remote, sha256=published),))
        monkeypatch.setitem(DATASETS, "tiny", row)
        if published != digest:
            with pytest.raises(InputError, match=f"must be {published}; it was removed"):
                fetch("tiny")
            assert list((tmp_path / "cache" / "tiny").iterdir()) == []
        else:
            assert fetch("tiny")[1][0].trusted == "published"


@pytest.mark.parametrize("change", [{"nodes": 41}, {"features": 5}, {"classes": 4}])
def test_another_graph_is_noticed(fetch, tiny, monkeypatch, change):
    monkeypatch.setitem(DATASETS, "tiny", dataclasses.replace(tiny, **change))
    (what,) = change
    with pytest.raises(InputError, match=f"must be {change[what]} {what}; the files are not those"):
        fetch("tiny")


def test_zips_are_unpacked_and_removed(server, fetch, zipped, tmp_path, monkeypatch):
    folder, (one,) = fetch("ogb-tiny")
    assert (one.file, one.trusted) == ("papers.zip", "first use")
    assert sorted(path.name for path in folder.iterdir()) == ["download.json", "papers"]
    _, (again,) = fetch("ogb-tiny")
    assert not again.new
    assert len(server["papers.zip"].requests) == 1
    monkeypatch.setenv("PDADMM_CACHE", str(tmp_path / "cache"))
    graph = load_dataset("ogb-tiny")
    assert (graph.name, graph.own_split, graph.num_nodes) == ("ogb-tiny", "time", 40)
    shutil.rmtree(folder / "papers")
    server["papers.zip"].content = server["papers.zip"].content[:-1] + b"x"
    with pytest.raises(InputError, match="as recorded"):
        fetch("ogb-tiny")


@pytest.mark.parametrize("ended", ["before unpacking", "before the zip was removed"])
def test_an_end_at_any_moment_is_gone_on_from(server, fetch, zipped, tmp_path, monkeypatch, ended):
    module, call = (download, "unpack") if ended == "before unpacking" else (download.Path, "unlink")

    unlink = Path.unlink

    def end(path, *_, **more):
        if path.suffix == ".zip":
            raise KeyboardInterrupt
        unlink(path, **more)

    with monkeypatch.context() as patch:
        patch.setattr(module, call, end)
        with pytest.raises(KeyboardInterrupt):
            fetch("ogb-tiny")
    folder = tmp_path / "cache" / "ogb-tiny"
    assert "papers.zip" in [path.name for path in folder.iterdir()]
    assert fetch("ogb-tiny")[1][0].trusted == "recorded"
    assert sorted(path.name for path in folder.iterdir()) == ["download.json", "papers"]
    assert len(server["papers.zip"].requests) == 1


def test_a_set_of_several_files(server, fetch, tmp_path, monkeypatch):
    """Raw Planetoid files; the one that is damaged on the way is fetched again, the others are not."""
    graph = fitted(GRAPH, {"dense", "weights", "free splits"})
    (tmp_path / "raw").mkdir()
    for path in sorted(write_planetoid(graph, tmp_path / "raw").iterdir()):
        server[path.name] = Served(path.read_bytes())
    names = [path.name for path in sorted((tmp_path / "raw").iterdir())]
    row = Dataset("g", "a", 40, 0, 4, 3, "public", "b", "c", ("g.npz",), page="https://d",
                  remotes=tuple(Remote(f"{server.url}/{name}", 10**6) for name in names))  # fmt: skip
    monkeypatch.setitem(DATASETS, "g", row)
    server[names[3]].cut = 20
    with pytest.raises(InputError, match="20 bytes of"):
        fetch("g")
    _, files = fetch("g")
    assert [(one.file, one.new) for one in files] == [(name, k >= 3) for k, name in enumerate(names)]
    monkeypatch.setenv("PDADMM_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("PDADMM_DATA", raising=False)
    again = load_dataset("g")
    assert again.fingerprint() == graph.fingerprint()
    assert again.own_split == "public"


def test_a_cut_download_goes_on(server, fetch, tiny):
    served = server["tiny.npz"]
    served.cut = 500
    with pytest.raises(InputError, match="500 bytes of"):
        fetch("tiny")
    assert fetch("tiny")[1][0].new
    assert served.requests[1]["Range"] == "bytes=500-"


def test_names_without_files_to_fetch(fetch, tmp_path, monkeypatch):
    words_of = {"flickr": "GraphSAINT: fetch them by hand", "digits": "needs no files", "x": "one of cora"}
    for name, words in words_of.items():
        with pytest.raises(InputError, match=words):
            fetch(name)
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(InputError, match="a folder that can be made"):
        fetch("cora")


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("PDADMM_CACHE", raising=False)
    assert cache_folder() == tmp_path / ".cache" / "pdadmm"
    monkeypatch.setenv("PDADMM_CACHE", "~/data")
    assert cache_folder() == tmp_path / "data"
    assert cache_folder("given") == Path("given")


def test_the_data_folder_comes_before_the_cache(fetch, tiny, tmp_path, monkeypatch):
    fetch("tiny")
    monkeypatch.setenv("PDADMM_CACHE", str(tmp_path / "cache"))
    other = csbm(30, num_classes=2)
    (tmp_path / "own").mkdir()
    write_own(other, tmp_path / "own").rename(tmp_path / "own" / "tiny.npz")
    assert load_dataset("tiny", tmp_path / "own").num_nodes == 30
    assert load_dataset("tiny", tmp_path / "cache").num_nodes == 40
    (tmp_path / "own" / "tiny.npz").unlink()
    assert load_dataset("tiny", tmp_path / "own").num_nodes == 40
    monkeypatch.setenv("PDADMM_CACHE", str(tmp_path / "none"))
    with pytest.raises(InputError, match=r"in the cache .*none; fetch it with pdadmm datasets --download tiny"):
        load_dataset("tiny")


@pytest.mark.parametrize("row", [row for row in DATASETS.values() if row.files], ids=lambda row: row.name)
def test_rows_say_where_from_and_how_much(row):
    assert row.page.startswith("https://")
    for remote in row.remotes:
        assert remote.url.startswith("https://")
        assert remote.file
        assert 10**6 <= remote.limit <= 10**11
        assert remote.sha256 == "" or len(bytes.fromhex(remote.sha256)) == 32
        assert (remote.unpacked is not None) == remote.file.endswith(".zip")
        assert remote.unpacked is None or remote.unpacked[0] in row.files
    planetoid = all(remote.file.startswith(f"ind.{row.name}.") for remote in row.remotes)
    assert planetoid or row.remotes[0].unpacked or row.remotes[0].file in row.files


# The command line


def test_the_command(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "download_dataset", partial(download_dataset, allow_local_http=True))
    assert main(["datasets", "--download", "tiny", "--cache", str(tmp_path / "cache")]) == 0
    text = capsys.readouterr().out
    assert "fetched, trusted on first use (no checksum of it is known here): recorded" in text
    assert "nodes, features and classes are as expected" in text
    assert f"pdadmm train --dataset tiny --data-dir {tmp_path / 'cache' / 'tiny'}" in text
    monkeypatch.setenv("PDADMM_CACHE", str(tmp_path / "cache"))
    assert main(["datasets", "--download", "tiny,tiny"]) == 0
    text = capsys.readouterr().out
    assert text.count("there already, as recorded") == 2
    assert text.endswith("pdadmm train --dataset tiny\n")
    assert main(["train", "--dataset", "tiny", "--layers", "2", "--hidden", "4", "--iterations", "2", "--quiet"]) == 0


def test_progress_where_there_is_no_terminal(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "download_dataset", partial(download_dataset, allow_local_http=True))
    monkeypatch.setattr(command, "SECONDS_BETWEEN_LINES", 0)
    assert main(["datasets", "--download", "tiny", "--cache", str(tmp_path)]) == 0
    size = len((tmp_path / "tiny" / "tiny.npz").read_bytes())
    assert f"tiny.npz: {size / 1000:.1f} kB of {size / 1000:.1f} kB" in capsys.readouterr().err


def test_progress_at_a_terminal(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "download_dataset", partial(download_dataset, allow_local_http=True))
    monkeypatch.setattr(command.sys.stderr, "isatty", lambda: True, raising=False)
    assert main(["datasets", "--download", "tiny", "--cache", str(tmp_path)]) == 0
    assert "tiny.npz" in capsys.readouterr().err


def test_an_interrupt_leaves_what_arrived(server, tiny, tmp_path, monkeypatch, capsys):
    """SIGINT while the file arrives; the same command then asks for the rest alone."""
    monkeypatch.setattr(command, "download_dataset", partial(download_dataset, allow_local_http=True))
    monkeypatch.setattr(transfer, "_PIECE", 256)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores SIGINT
    try:
        with monkeypatch.context() as patch:
            patch.setattr(command._Transfer, "__call__", lambda *_: signal.raise_signal(signal.SIGINT))
            assert main(["datasets", "--download", "tiny", "--cache", str(tmp_path)]) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert "the same command goes on from here" in capsys.readouterr().err
    arrived = (tmp_path / "tiny" / "tiny.npz.partial").stat().st_size
    assert arrived == 256
    assert main(["datasets", "--download", "tiny", "--cache", str(tmp_path)]) == 0
    assert server["tiny.npz"].requests[1]["Range"] == "bytes=256-"


def test_the_table_and_the_facts(capsys):
    assert main(["datasets"]) == 0
    text = capsys.readouterr().out
    assert all(f"\n{name} " in text for name in DATASETS)
    assert "graphsaint  a folder with adj_full.npz" in text
    for name, row in DATASETS.items():
        assert main(["datasets", "--about", name]) == 0
        text = capsys.readouterr().out
        assert row.citation in text
        assert row.licence in text
        assert all(remote.url in text for remote in row.remotes)
        assert ("by hand" in text) == (bool(row.files) and not row.remotes)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["--about", "corra"], "about = corra: must be one of cora"), (["--download", "x"], "download = x: must be one"),
     (["--cache", "x"], "cache = x: must be given with --download"), (["--download", ""], "download = : must be one"),
     (["--about", "cora", "--download", "cora"], "left out with --download")],
)  # fmt: skip
def test_bad_flags_end_with_a_sentence(arguments, words, capsys):
    assert main(["datasets", *arguments]) == 2
    assert words in capsys.readouterr().err
