"""Package data and dependencies; ranges, not pins, so that xlcm installs beside other libraries."""

from setuptools import find_packages, setup

VIDEO = ["av>=12"]
FEATURES = ["h5py>=3.8", "lmdb>=1.4"]
TRANSLATE = ["sacrebleu>=2.4", "py3langid>=0.2"]
STREAM = ["datasets>=3.2"]
SEARCH = ["faiss-cpu>=1.8", "gradio>=4.40"]
PEFT = ["peft>=0.13"]
EVAL = ["mteb>=1.30"]
ONNX = ["onnx>=1.17", "onnxscript>=0.2", "onnxruntime>=1.20"]
OPENVINO = ["onnx>=1.17", "onnxscript>=0.2", "openvino>=2024.5"]
DEEPSPEED = ["deepspeed>=0.19.8"]
BENCH = [
    "open_clip_torch>=2.30", "sentence-transformers>=3", "pytorch-metric-learning>=2.5",
    "POT>=0.9.5", "torchmetrics>=1.4", "faiss-cpu>=1.8", "clip-benchmark>=1.6", *EVAL,
    *ONNX, *OPENVINO,
]  # fmt: skip
TRACK = ["tensorboard>=2.16", "wandb>=0.18"]
DOCS = ["mkdocs>=1.6,<2", "mkdocs-material>=9.5", "mkdocstrings[python]>=0.26"]
TEST = [
    "pytest>=8.0,<10", "pytest-cov>=5.0", "hypothesis>=6.100",
    *VIDEO, *FEATURES, *TRANSLATE, *STREAM, *ONNX,  # or their tests would be skipped
    "webdataset>=0.2.86",
]  # fmt: skip
DEV = [*TEST, "ruff>=0.9", "mypy>=1.13", "types-PyYAML", "pre-commit>=3.8"]

setup(
    name="xlcm",
    version="0.1.0",
    description="Train and evaluate models that find images and videos from text in any language",
    long_description=open("README.md", encoding="utf-8").read(),
    long_description_content_type="text/markdown",
    author="The xlcm authors",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["xlcm", "xlcm.*"]),
    package_data={"xlcm": ["py.typed"]},
    install_requires=[
        "torch>=2.6",
        "torchvision>=0.21",
        "transformers>=4.50,<6",
        "timm>=1.0.12",
        "accelerate>=1.4",
        "sentencepiece>=0.2",
        "msgspec>=0.19",  # reads manifests
        "protobuf>=4.25",  # transformers reads sentencepiece models with it
        "einops>=0.8",
        "safetensors>=0.4.5",
        "huggingface_hub>=0.27",
        "pydantic>=2.9,<3",
        "PyYAML>=6.0",
        "numpy>=1.26",
        "Pillow>=10.3",
        "rich>=13.7",
        "matplotlib>=3.8",
    ],
    extras_require={
        "video": VIDEO,
        "features": FEATURES,
        "translate": TRANSLATE,
        "stream": STREAM,
        "search": SEARCH,
        "peft": PEFT,
        "eval": EVAL,
        "bench": BENCH,
        "deepspeed": DEEPSPEED,
        "onnx": ONNX,
        "openvino": OPENVINO,
        "track": TRACK,
        "docs": DOCS,
        "test": TEST,
        "dev": DEV,
    },
    entry_points={"console_scripts": ["xlcm = xlcm.cli:main"]},
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "License :: OSI Approved :: Apache Software License",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
