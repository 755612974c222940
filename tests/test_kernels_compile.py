"""Every CUDA source compiles for sm_90, with nvcc and with NVRTC, the compiler that CuPy uses at run time."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import re
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from pdadmm.kernels import gpu_launch

ARCHITECTURE = "sm_90"
KERNELS = {"updates": "update_z_float_4", "sums": "square_float_4",
           "newton": "softmax_newton_float_8_1", "scale": "codec_fit_float",
           "codec": "codec_encode_float_4", "spmm": "spmm_rows_float_float_int32_4_32",
           "factor": "spd_inverse_float"}  # fmt: skip


def find_nvcc() -> str | None:
    folders = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), *sorted(Path("/usr/local").glob("cuda*"))]
    places = [str(Path(folder) / "bin") for folder in folders if folder]
    return shutil.which("nvcc") or shutil.which("nvcc", path=os.pathsep.join(places))


def find_nvrtc() -> Path | None:
    """The library of the nvidia-cuda-nvrtc wheel (torch's CUDA builds bring it) or of a toolkit."""
    spec = importlib.util.find_spec("nvidia")
    folders = [Path(place) for place in (spec.submodule_search_locations if spec else ())]
    found = [path for folder in folders for path in folder.glob("**/libnvrtc.so.*")]
    found += [path for folder in Path("/usr/local").glob("cuda*") for path in folder.glob("lib64/libnvrtc.so.*")]
    return found[0] if found else None


@pytest.mark.parametrize("name", gpu_launch.SOURCES)
def test_nvcc(name, tmp_path):
    nvcc = find_nvcc()
    if nvcc is None:
        pytest.skip("no nvcc on PATH, in CUDA_HOME or under /usr/local")
    source, cubin = tmp_path / f"{name}.cu", tmp_path / f"{name}.cubin"
    source.write_text(gpu_launch.source(name), "utf-8")
    options = [option.removeprefix("-") for option in gpu_launch.OPTIONS]
    command = [nvcc, f"-arch={ARCHITECTURE}", *options, "-Xptxas", "-v", "-cubin", "-o", str(cubin), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr
    assert KERNELS[name].encode() in cubin.read_bytes()
    spilled = [int(size) for size in re.findall(r"(\d+) bytes spill stores", done.stderr)]
    assert spilled
    assert max(spilled) <= 32, "registers go to local memory"


@pytest.mark.parametrize("name", gpu_launch.SOURCES)
def test_nvrtc(name):
    path = find_nvrtc()
    if path is None:
        pytest.skip("no libnvrtc: the nvidia-cuda-nvrtc wheel or a CUDA toolkit has it")
    for builtins in path.parent.glob("libnvrtc-builtins.so.*"):  # which it would look for on the system's path
        ctypes.CDLL(str(builtins), mode=ctypes.RTLD_GLOBAL)
    cubin = compile_with_nvrtc(ctypes.CDLL(str(path)), gpu_launch.source(name), f"{name}.cu")
    assert KERNELS[name].encode() in cubin


def test_the_file_that_cupy_loads_is_whole(tmp_path, monkeypatch):
    nvrtc = pytest.importorskip("cupy.cuda", reason="CuPy is not installed", exc_type=ImportError).nvrtc
    try:
        nvrtc.getVersion()
    except Exception as error:  # CuPy's own class, from another package
        pytest.skip(f"CuPy finds no NVRTC: {error}")
    monkeypatch.setenv("CUPY_CACHE_DIR", str(tmp_path))
    path = gpu_launch.compiled("scale", ARCHITECTURE)
    code = path.read_bytes()
    table, *_, entry, entries, _ = struct.unpack_from("<QIHHHHHH", code, 40)  # of an ELF header
    assert code[:4] == b"\x7fELF"
    assert table + entry * entries <= len(code)
    assert gpu_launch.compiled("scale", ARCHITECTURE) == path
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def compile_with_nvrtc(library: ctypes.CDLL, source: str, name: str) -> bytes:
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    options = [option.encode() for option in (f"--gpu-architecture={ARCHITECTURE}", *gpu_launch.NVRTC_OPTIONS)]
    array = (ctypes.c_char_p * len(options))(*options)
    text = ctypes.c_char_p(source.encode())
    assert library.nvrtcCreateProgram(ctypes.byref(program), text, name.encode(), 0, None, None) == 0
    status = library.nvrtcCompileProgram(program, len(options), array)
    library.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    library.nvrtcGetProgramLog(program, log)
    assert status == 0, log.value.decode()
    assert library.nvrtcGetCUBINSize(program, ctypes.byref(size)) == 0
    cubin = ctypes.create_string_buffer(size.value)
    assert library.nvrtcGetCUBIN(program, cubin) == 0
    library.nvrtcDestroyProgram(ctypes.byref(program))
    return cubin.raw
