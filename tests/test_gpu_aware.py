"""Whether MPI takes GPU memory: who is asked, in which order, and what an answer means."""

from __future__ import annotations

import types

import pytest

from pdadmm import InputError
from pdadmm.cli import main
from pdadmm.parallel import gpu_aware
from pdadmm.parallel.device import check_device
from pdadmm.parallel.gpu_aware import KINDS, SETTING, Support, setting, support


@pytest.fixture(autouse=True)
def auto(monkeypatch):
    """Whatever the shell says."""
    monkeypatch.delenv(SETTING, raising=False)


class Fake:
    """What mpi4py.MPI is asked, with given answers; ``library`` has the names that the MPI library exports."""

    class Info(dict):
        def __init__(self, kinds: str | None) -> None:
            super().__init__({"other": "x"} if kinds is None else {KINDS: kinds})
            self.freed = False

        def Get(self, key):
            return self.get(key)

        def Free(self):
            self.freed = True

    def __init__(self, monkeypatch, world=None, environment=None, library=None) -> None:
        self.info, self.INFO_ENV = self.Info(world), self.Info(environment)
        self.COMM_WORLD = types.SimpleNamespace(Get_info=lambda: self.info)
        self.__file__, self.asked = "libmpi.so", []

        def load(path):
            self.asked.append(path)
            if library is None:
                raise OSError
            return types.SimpleNamespace(**library)

        monkeypatch.setattr(gpu_aware.ctypes, "CDLL", load)


def mpich(answer: int, status: int = 0):
    def query(kind, found):
        assert kind == 0
        found._obj.value = answer
        return status

    return query


KIND_ANSWERS = {
    "mpi,system,cuda": True, "mpi,system,cuda:device": True, "mpi, CUDA:host:device": True,
    "mpi,system": False, "mpi,cuda:host,cuda:managed": False, "rocm:device,cudax": False, "": False,
}  # fmt: skip


@pytest.mark.parametrize("place", ["world", "environment"])
@pytest.mark.parametrize("kinds", KIND_ANSWERS)
def test_the_info_of_mpi_comes_first_and_leaves_open_what_it_does_not_name(monkeypatch, place, kinds):
    mpi = Fake(monkeypatch, **{place: kinds}, library={"MPIX_Query_cuda_support": lambda: 0})
    if KIND_ANSWERS[kinds]:
        assert support(mpi) == Support(True, KINDS)
        assert not mpi.asked
    else:
        assert support(mpi) == Support(False, "MPIX_Query_cuda_support")
        assert mpi.asked == ["libmpi.so"]
    assert mpi.info.freed


@pytest.mark.parametrize(
    ("library", "answer", "words"),
    [
        ({"MPIX_Query_cuda_support": lambda: 1}, True, "yes (MPIX_Query_cuda_support)"),
        ({"MPIX_Query_cuda_support": lambda: 0, "MPIX_GPU_query_support": mpich(1)}, False,
         "no (MPIX_Query_cuda_support)"),
        ({"MPIX_GPU_query_support": mpich(1)}, True, "yes (MPIX_GPU_query_support)"),
        ({"MPIX_GPU_query_support": mpich(0)}, False, "no (MPIX_GPU_query_support)"),
        ({"MPIX_GPU_query_support": mpich(1, status=5)}, False, "no (MPIX_GPU_query_support)"),
        ({}, None, "unknown"),
        (None, None, "unknown"),
    ],
)  # fmt: skip
def test_the_library_is_asked_last(monkeypatch, library, answer, words):
    found = support(Fake(monkeypatch, library=library))
    assert found.takes is answer
    assert str(found) == words


@pytest.mark.parametrize("given", ["0", "1"])
def test_the_setting_is_above_all(monkeypatch, given):
    monkeypatch.setenv(SETTING, given)
    for kinds, answer in (("cuda", 1), ("mpi,system", 0)):
        mpi = Fake(monkeypatch, world=kinds, library={"MPIX_Query_cuda_support": lambda answer=answer: answer})
        assert support(mpi) == Support(given == "1", f"PDADMM_GPU_AWARE={given}")
        assert not mpi.asked


@pytest.mark.parametrize("given", ["", "auto"])
def test_auto_asks(monkeypatch, given):
    monkeypatch.setenv(SETTING, given)
    assert setting() is None
    assert support(Fake(monkeypatch, world="mpi,cuda")).source == KINDS


@pytest.mark.parametrize("given", ["yes", "2", "AUTO", "true"])
def test_other_settings_are_refused(monkeypatch, capsys, given):
    monkeypatch.setenv(SETTING, given)
    words = f"PDADMM_GPU_AWARE = {given}: must be 0, 1 or auto"
    with pytest.raises(InputError, match=words):
        setting()
    for name in ("cuda", "auto"):
        with pytest.raises(InputError, match=words):
            check_device(name)
    check_device("cpu")
    line = ["train", "--dataset", "csbm:60", "--layers", "2", "--hidden", "4", "--iterations", "1", "--quiet"]
    assert main([*line, "--device", "auto"]) == 2
    err = capsys.readouterr().err
    assert words in err
    assert err.count("\n") == 1
