"""What ``pdadmm doctor`` finds out: this installation, this machine, this MPI, and a short test of all three."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pdadmm import __version__
from pdadmm.parallel.gpu_aware import support
from pdadmm.parallel.launch import cores, launched_size

__all__ = ["CHECKS", "facts", "launch_ranks", "mpi_facts", "run_check", "same_on_ranks", "starter"]

PACKAGES = ("torch", "numpy", "scipy", "scikit-learn", "safetensors", "tqdm", "mpi4py", "matplotlib")
CUPY = ("cupy-cuda13x", "cupy-cuda12x", "cupy")  # one of them: that of torch's CUDA
RANKS = 2
LIMIT = 60.0  # seconds for the launch of the ranks; a healthy one takes few


def facts() -> dict[str, str]:
    """Return what is installed and what this machine offers, as lines to print."""
    import torch

    from pdadmm.kernels import cpu, factor, scattered, spmm, updates

    built = {"updates": (updates, "plain torch"), "factors": (factor, "LAPACK")}
    built |= {"codec": (cpu, "plain torch"), "S X": (spmm, "scipy")}
    built["rows from disk"] = scattered, "Python"
    kernels = [f"{name} {'compiled' if one.available() else instead}" for name, (one, instead) in built.items()]
    return {
        "pdadmm": f"{__version__} on Python {platform.python_version()}, {platform.system()} {platform.machine()}",
        "packages": ", ".join(f"{name} {_version(name)}" for name in (*PACKAGES, *_cupy())),
        "kernels": ", ".join(kernels),
        "processor": f"{cores()} of {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}",
        "bf16": _bf16(),
        "gpu": _gpu(),
        "data": os.environ.get("PDADMM_DATA") or "PDADMM_DATA is not set",
    }


def _gpu() -> str:
    """Say which GPU torch can use, whether our kernels run on it, and what the environment turns off there."""
    import torch

    from pdadmm.admm.replay import SETTING as GRAPHS
    from pdadmm.admm.stack import SETTING as STACKS
    from pdadmm.kernels import gpu_launch
    from pdadmm.parallel.device import switched_on

    if not torch.cuda.is_available():
        return "none that this torch can use"
    device = torch.device("cuda", torch.cuda.current_device())
    told = [torch.cuda.get_device_name(device), gpu_launch.lacking(device) or "CuPy runs its kernels"]
    return ", ".join([*told, *(f"{setting}=0" for setting in (STACKS, GRAPHS) if not switched_on(setting))])


def _cupy() -> list[str]:
    """Return the CuPy packages that are installed, the first one's name where none is."""
    return [name for name in CUPY if _version(name) != "not installed"] or [CUPY[0]]


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _bf16() -> str:
    """Say whether the processor multiplies bfloat16 itself, and whether torch's products of float32 arrays use that."""
    from pdadmm.admm.products import has_bf16

    try:
        words = set(Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").split())
    except OSError:
        return "unknown"
    found = sorted(words & {"avx512_bf16", "amx_bf16", "bf16", "sve_bf16"})
    if not found:
        return "not in hardware"
    return f"in hardware ({', '.join(found)}), products {'use it' if has_bf16() else 'of torch do not use it'}"


def mpi_facts() -> dict[str, str]:
    """Return which MPI this is, and whether it takes GPU memory and who says so; MPI is started by this."""
    from mpi4py import MPI

    library = MPI.Get_library_version().replace("\x00", "").strip().splitlines()
    lines = [" ".join(line.split()) for line in library[:1]]
    return {"mpi": lines[0], "gpu-aware mpi": str(support(MPI))}


# The test of this installation


def closed_forms() -> str:
    """The updates of p, of W with b, and of q are minimisers: their gradients vanish."""
    import torch

    from pdadmm.admm.updates import Moments, prepare_p_exact, update_p_exact_, update_q_, update_u_, update_W_b_exact

    random = torch.Generator().manual_seed(0)
    V, m, n, nu, rho = 30, 5, 4, 0.3, 0.7
    z, q, u, W, b = (
        torch.randn(*shape, generator=random, dtype=torch.float64) for shape in ((V, n), (V, m), (V, m), (n, m), (n,))
    )
    p = torch.empty_like(q)
    update_p_exact_(p, prepare_p_exact(z, W, b, nu, rho), q, u, rho)
    gaps = [-nu * (z - p @ W.mT - b) @ W + u + rho * (p - q)]
    W, b = update_W_b_exact(Moments.of(p, z), W)
    r = z - p @ W.mT - b
    gaps += [r.mT @ p, r.sum(0)]
    update_q_(q, p, u, p.relu(), nu, rho)
    gaps.append(nu * (q - p.relu()) - u - rho * (p - q))
    before = u.clone()
    update_u_(u, p, q, rho)
    gaps.append(u - before - rho * (p - q))
    worst = max(float(gap.abs().max()) for gap in gaps)
    _need(worst < 1e-8, f"a gradient of {worst:.1e} is left at a minimiser")
    return f"largest gradient {worst:.0e}"


def codec() -> str:
    """Both ends of a channel hold the same bits, within half a step of what was sent."""
    import torch

    from pdadmm.quantize import make_coder

    random, worst = torch.Generator().manual_seed(0), 0.0
    for bits in (16, 8, 4, 2, 1):
        sender, receiver = make_coder(bits), make_coder(bits)
        start, x = torch.zeros(50, 7), torch.randn(50, 7, generator=random)
        sender.start(start)
        receiver.start(start)
        found = receiver.decode(sender.encode(x))
        _need(torch.equal(found, sender.value), f"the two ends differ at {bits} bits")
        step = (x.amax(0) - x.amin(0)) / (2**bits - 1)
        share = float(((found - x).abs() / step).max())
        _need(share < 0.51 or bits == 1, f"an error of {share:.2f} steps at {bits} bits")
        worst = max(worst, share if bits > 1 else 0.0)
    return f"16 to 1 bits, largest error {worst:.2f} steps"


def training() -> str:
    """A small network learns a small graph, its objective falls, and its file gives it back."""
    import torch

    from pdadmm import History, load_model

    graph, solver = small_run()
    with tempfile.TemporaryDirectory() as folder:
        solver.save(Path(folder) / "model")
        model = load_model(Path(folder) / "model")[0]
        solver.history_.to_jsonl(Path(folder) / "history.jsonl")
        _need(History.from_jsonl(Path(folder) / "history.jsonl") == solver.history_, "a history came back changed")
    ours, theirs = solver.model_.state_dict(), model.state_dict()
    _need(all(torch.equal(ours[name], theirs[name]) for name in ours), "a saved model came back changed")
    accuracy = solver.score(graph)
    _need(accuracy > 0.7, f"a test accuracy of {accuracy:.2f} where 0.7 is easy")
    return f"test accuracy {accuracy:.2f} on a made-up graph"


def training_on_gpu() -> str:
    """A network trained on the GPU has the objectives of the same one trained on the CPU, to rounding."""
    runs = (small_run(layers=8, iterations=10, dtype="float64", device=device)[1] for device in ("cuda", "cpu"))
    found, expected = (run.history_.column("objective") for run in runs)
    worst = max(abs(ours - due) / due for ours, due in zip(found, expected, strict=True))
    _need(worst < 1e-6, f"an objective differs from the CPU's by {worst:.0e} of it")
    return f"objectives of the CPU, to {worst:.0e} of them"


CHECKS: dict[str, Callable[[], str]] = {"closed forms": closed_forms, "codec": codec, "training": training}


def checks() -> dict[str, Callable[[], str]]:
    """Return what is checked in one process here: CHECKS, and where torch can use a GPU a training there."""
    import torch

    return CHECKS | ({"gpu training": training_on_gpu} if torch.cuda.is_available() else {})


def _need(holds: bool, otherwise: str) -> None:
    if not holds:
        raise RuntimeError(otherwise)


def run_check(check: Callable[[], str]) -> tuple[bool, str]:
    """Return whether a check passed, and what it says."""
    began = time.perf_counter()
    try:
        told = check()
    except Exception as error:  # whatever is broken here is what the doctor is asked for
        reason = str(error).strip().splitlines() or [""]
        return False, f"{type(error).__name__}: {reason[0]}"
    return True, f"{told} ({time.perf_counter() - began:.1f} s)"


# Ranks


def small_run(comm: Any = None, **parameters: Any) -> tuple[Any, Any]:
    """Return a made-up graph and PDADMMG trained on it, in this process alone or on the ranks of ``comm``.

    One BLAS thread: bits depend on their number.
    """
    from pdadmm import PDADMMG, csbm

    if comm is None and launched_size() > 1:
        from mpi4py import MPI

        comm = MPI.COMM_SELF
    graph = csbm(150, num_classes=3, num_features=6, seed=2)
    chosen = {"layers": 4, "hidden": 8, "iterations": 6, "hops": 2, "threads": 1} | parameters
    return graph, PDADMMG(**chosen).fit(graph, comm=comm)


def same_on_ranks(comm: Any) -> str:
    """Train on all ranks of ``comm`` and on one; the weights must be equal bit for bit. Collective."""
    import torch
    from mpi4py import MPI

    size = min(comm.Get_size(), 4)  # of layers there are no more
    part = comm.Split(0 if comm.Get_rank() < size else MPI.UNDEFINED, comm.Get_rank())
    if part == MPI.COMM_NULL:
        return ""
    _, spread = small_run(part)
    _, alone = small_run()
    part.Free()
    ours, theirs = spread.model_.state_dict(), alone.model_.state_dict()
    _need(all(torch.equal(ours[name], theirs[name]) for name in ours), f"{size} ranks and one process differ")
    return f"{size} ranks give the bits of one process"


def starter() -> Path | None:
    """Return the mpiexec beside this Python, else the first on the path; None without one or without mpi4py."""
    if importlib.util.find_spec("mpi4py") is None:
        return None
    beside = Path(sys.executable).with_name("mpiexec")
    found = str(beside) if beside.exists() else shutil.which("mpiexec")
    return Path(found) if found else None


def launch_ranks(mpiexec: Path) -> dict[str, Any]:
    """Start ranks of this file and return what rank 0 wrote: facts about MPI, and the outcome of their check."""
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        here = str(Path(__file__).resolve().parents[1])
        more = {"PYTHONPATH": os.pathsep.join(filter(None, (here, os.environ.get("PYTHONPATH"))))}
        crowd = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
                 "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe"}  # fmt: skip
        command = [str(mpiexec), "-n", str(RANKS), sys.executable, "-m", "pdadmm.doctor", str(answer)]
        try:
            done = subprocess.run(
                command, env=os.environ | crowd | more, capture_output=True, text=True, timeout=LIMIT
            )
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"{RANKS} ranks did not end within {LIMIT:.0f} s") from None
        if done.returncode or not answer.exists():
            words = [line for line in done.stderr.splitlines() if line.strip()] or ["no word of why"]
            raise RuntimeError(f"{mpiexec} ended with status {done.returncode}: {words[-1].strip()}")
        return json.loads(answer.read_text(encoding="utf-8"))


def main() -> None:
    """What each launched rank does: train, compare, and on rank 0 write it down."""
    from pdadmm.parallel.launch import make_transport

    transport = make_transport()  # sets what must be set before MPI starts
    from mpi4py import MPI

    _need(transport.size == RANKS, f"{transport.size} ranks found each other where {RANKS} were started")
    told = same_on_ranks(MPI.COMM_WORLD)
    if transport.rank == 0:
        Path(sys.argv[1]).write_text(json.dumps({"facts": mpi_facts(), "told": told}), encoding="utf-8")


if __name__ == "__main__":
    main()
