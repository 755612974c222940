"""Packaging of pdadmm: version ranges here, exact pins in requirements.txt."""

import re
from pathlib import Path

from setuptools import Extension, find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r'__version__ = "([^"]+)"', (ROOT / "pdadmm/__init__.py").read_text("utf-8")).group(1)

MPI = ["mpi4py>=4.0,<5"]
PLOT = ["matplotlib>=3.8,<4"]
TEST = [
    *("mpich>=4.2", "pytest>=8,<10", "pytest-timeout>=2.3,<3", "pytest-cov>=6,<8", "pytest-xdist>=3.6,<4"),
    *("hypothesis>=6.100,<7", "ruff>=0.8", "mypy>=1.15,<3"),
]

setup(
    name="pdadmm",
    version=VERSION,
    description="Graph-augmented MLPs trained by pdADMM-G: gradient-free, one layer per MPI rank",
    long_description=(ROOT / "README.md").read_text("utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    license_files=["LICENSE"],
    keywords=["ADMM", "graph neural network", "model parallelism", "MPI"],
    classifiers=[
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
    python_requires=">=3.11",
    packages=find_packages(include=["pdadmm", "pdadmm.*"]),
    # kernels: compiled on the machine with the GPU
    package_data={"pdadmm.kernels": ["*.cu", "*.h"], "pdadmm.report": ["*.css"]},
    # Optional: without a compiler plain torch takes their place. Contraction would change the codec's bits.
    ext_modules=[
        Extension(
            f"pdadmm.kernels._{name}",
            [f"pdadmm/kernels/{name}.c"],
            depends=["pdadmm/kernels/cpu.h"],
            extra_compile_args=[
                *("-std=gnu11", "-O3", "-g0", "-fno-math-errno", "-fno-trapping-math"),
                f"-ffp-contract={'fast' if name == 'factor' else 'off'}",
            ],
            libraries=["m"],
            optional=True,
        )
        for name in ("codec", "updates", "factor", "spmm", "operator", "scattered")
    ],
    install_requires=[
        "torch>=2.11,<2.14",
        "numpy>=2.0,<3",
        "scipy>=1.13,<2",
        "scikit-learn>=1.6,<2",
        "safetensors>=0.4.3,<1",
        "tqdm>=4.66,<5",
    ],
    extras_require={
        "mpi": MPI,  # any MPI will do: a cluster's own, or `pip install mpich`
        "gpu": ["cupy-cuda13x>=14.0,<15"],  # for torch built with CUDA 13
        "gpu12": ["cupy-cuda12x>=14.0,<15"],  # and with CUDA 12
        "plot": PLOT,
        "partition": ["pymetis>=2025.1"],
        "docs": ["sphinx>=8.2", "myst-parser>=4.0", "furo>=2024.8"],
        "test": [*MPI, *PLOT, *TEST],
    },
    entry_points={"console_scripts": ["pdadmm = pdadmm.__main__:main"]},
)
