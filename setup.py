"""Package metadata. Everything else is in pyproject.toml and in the code."""

from pathlib import Path

from setuptools import Extension, find_packages, setup

DECODERS = [
    "pylibjpeg>=2.0",
    "pylibjpeg-libjpeg>=2.1",
    "pylibjpeg-openjpeg>=2.3",
    "pylibjpeg-rle>=2.0",
    "pyjpegls>=1.2",
]

PACS = ["highdicom>=0.25", "dicomweb-client>=0.60"]

DALI_CUDA12 = "nvidia-dali-cuda120>=2.0"

ROOT = Path(__file__).parent
PACKED = "ichfast/packed"

# No Python extension, but a plain library that ctypes loads. Where it cannot be
# compiled, ichfast is installed without it, and NumPy does the same, slowly.
PACKED_LIBRARY = Extension(
    "ichfast.packed._record",
    sources=[f"{PACKED}/{path.name}" for path in sorted((ROOT / PACKED).glob("*.c"))],
    depends=[f"{PACKED}/{path.name}" for path in sorted((ROOT / PACKED).glob("*.h"))],
    extra_compile_args=["-std=c99", "-O3", "-Wall", "-Wextra"],
    optional=True,
)

setup(
    name="ichfast",
    version="0.2.0",
    description="Train intracranial-hemorrhage detectors on head CT, fast.",
    long_description=(ROOT / "README.md").read_text("utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["ichfast", "ichfast.*"]),
    ext_modules=[PACKED_LIBRARY],
    package_data={
        "": ["*.pyi"],
        "ichfast": ["py.typed", "report/page.html.jinja"],
        "ichfast.packed": ["*.c", "*.h", "*.cu"],
    },
    install_requires=[
        "numpy>=1.26",
        "pandas>=2.2",
        "pyarrow>=15",
        "pydicom>=3.0.1",
        "google-crc32c>=1.5",
        "click>=8.1",
        "lazy_loader>=0.5",
        "packaging>=22",
        "tqdm>=4.66",
        "torch>=2.6",
        "timm>=1.0.12",
        "safetensors>=0.4",
        "matplotlib>=3.8",
        "jinja2>=3.1",
        "pillow>=10",
        "tensorboard>=2.16",
    ],
    extras_require={
        "cpu": [DALI_CUDA12],  # CuPy has no use without a GPU
        "cuda12": [DALI_CUDA12, "cupy-cuda12x>=14"],
        "cuda13": ["nvidia-dali-cuda130>=2.0", "cupy-cuda13x>=14"],
        "decoders": DECODERS,
        "nifti": ["nibabel>=5.3"],
        "cloud": ["fsspec>=2024.10", "s3fs>=2024.10", "gcsfs>=2024.10"],
        "pacs": PACS,
        "dask": ["distributed>=2024.10"],
        "export": ["onnx>=1.17", "onnxscript>=0.3", "onnxruntime>=1.20"],
        "docs": ["sphinx>=8.1", "myst-parser>=4.0", "furo>=2024.8"],
        "bench": ["albumentations>=2.0", "monai>=1.6", "imagecodecs>=2025.3.30"],
        "test": [
            "pytest>=8",
            "pytest-xdist>=3.6",
            "ruff==0.17.6",
            "mypy==2.4.1",
            "pandas-stubs",
            "types-tqdm",
            "scikit-learn>=1.4",
            "scipy>=1.11",
            "nvidia-cuda-nvrtc>=13.0",
            "SimpleITK>=2.4",
            "python-gdcm>=3.0.24",
            *PACS,
            "fsspec>=2024.10",
            "s3fs>=2024.10",
            "moto[server]>=5",
            "distributed>=2024.10",
            "onnx>=1.17",
            "onnxscript>=0.3",
            "onnxruntime>=1.20",
            "lightning>=2.4",
            "accelerate>=1.0",
            "mlflow-skinny>=3.1",
            "nbclient>=0.10",
            "ipykernel>=6.29",
        ],
    },
    entry_points={"console_scripts": ["ichfast = ichfast.cli.main:main"]},
    classifiers=[
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Operating System :: POSIX :: Linux",
        "Topic :: Scientific/Engineering :: Medical Science Apps.",
        "Intended Audience :: Science/Research",
    ],
)
