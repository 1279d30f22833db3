"""Commands on embedding sets: encode, import, gap."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from connector.cli.group import _exit_for_rejects, _home, cli
from connector.cli.options import corpus_options, home_options, json_option, rejects_option
from connector.cli.tables import print_geometry, print_json, print_result

if TYPE_CHECKING:
    from alignment.sets.embedding_set import EmbeddingSet
    from connector.provenance.runs import RunResult


@cli.command()
@click.argument("corpus", type=click.Path(path_type=Path))
@click.option("--set", "name", required=True, metavar="NAME", help="Embedding set to write.")
@click.option("--image-encoder", metavar="SPEC", help="open_clip:MODEL/PRETRAINED, timm:MODEL or a plugin's.")
@click.option(
    "--text-encoder", metavar="SPEC", help="open_clip:MODEL/PRETRAINED, sentence-transformers:NAME or a plugin's."
)
@click.option(
    "--dtype",
    type=click.Choice(["float32", "float16"]),
    default="float32",
    show_default=True,
    help="Type of the stored vectors.",
)
@click.option(
    "--batch-size", type=click.IntRange(1), default=32, show_default=True, help="Items the encoder takes at a time."
)
@click.option(
    "--shard-size",
    type=click.IntRange(1),
    default=1024,
    show_default=True,
    help="Rows of a shard; a kill loses at most one.",
)
@corpus_options
@rejects_option
@json_option
@home_options
def encode(
    corpus: Path,
    name: str,
    image_encoder: str | None,
    text_encoder: str | None,
    dtype: Any,
    batch_size: int,
    shard_size: int,
    format: str | None,
    images: Path | None,
    max_rejects: int,
    as_json: bool,
    **where: Any,
) -> None:
    """Encode CORPUS, a JSONL, CSV, TSV or Parquet manifest or a folder of images, into an embedding set.

    A manifest has the columns key and image or caption, and group, if several items describe the same thing; all
    else becomes payload. A folder has captions in .txt files of the images' stems, one a line. COCO, Karpathy and
    Flickr annotations, WebDataset archives (also 'train-{0000..0099}.tar') and img2dataset's folders are read too:
    docs/corpora.md.

    Run it again after a kill or a change of the corpus: what stands in the set is not encoded again.
    """
    specs: dict[Any, str] = {"image": image_encoder or "", "text": text_encoder or ""}
    given = {modality: spec for modality, spec in specs.items() if spec}
    with _home(where) as home:
        result = home.encode(
            corpus,
            name,
            given,
            format=format,
            images=images,
            dtype=dtype,
            batch_items=batch_size,
            shard_rows=shard_size,
        )
    _print_set(name, result, max_rejects, as_json)


@cli.command("import")
@click.argument("vectors", type=click.Path(path_type=Path))
@click.option("--set", "name", required=True, metavar="NAME", help="Embedding set to write.")
@click.option("--image-encoder", metavar="NAME", help="What made the image vectors; kept as imported:NAME.")
@click.option("--text-encoder", metavar="NAME", help="What made the text vectors; kept as imported:NAME.")
@click.option("--image-vectors", metavar="COLUMN", help="Column of a Parquet file.  [default: its only vector column]")
@click.option("--text-vectors", metavar="COLUMN", help="Column of a Parquet file.  [default: its only vector column]")
@click.option(
    "--metadata",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Parquet file with the rows of a .npy.  [default: the one of its name]",
)
@click.option("--key", metavar="COLUMN", help="Column that names the rows for ever.  [default: key or image_path]")
@click.option(
    "--group", metavar="COLUMN", help="Column of what describes the same thing.  [default: group, or the key]"
)
@click.option(
    "--dtype",
    type=click.Choice(["float32", "float16"]),
    default="float32",
    show_default=True,
    help="Type of the stored vectors.",
)
@rejects_option
@json_option
@home_options
def import_(
    vectors: Path,
    name: str,
    image_encoder: str | None,
    text_encoder: str | None,
    image_vectors: str | None,
    text_vectors: str | None,
    metadata: Path | None,
    key: str | None,
    group: str | None,
    dtype: Any,
    max_rejects: int,
    as_json: bool,
    **where: Any,
) -> None:
    """Take VECTORS that were computed elsewhere into an embedding set, without encoding anything.

    VECTORS is a folder that clip-retrieval wrote, a .npy with a Parquet file of its rows, or a Parquet file, or a
    folder of these, with a vector column. No model comes with them: searching takes vectors too, from Python.
    """
    encoders: dict[Any, str] = {"image": image_encoder or "", "text": text_encoder or ""}
    columns: dict[Any, str] = {"image": image_vectors or "", "text": text_vectors or ""}
    with _home(where) as home:
        result = home.import_vectors(
            vectors,
            name,
            {m: encoder for m, encoder in encoders.items() if encoder},
            dtype=dtype,
            columns={m: column for m, column in columns.items() if column},
            metadata=metadata,
            key=key,
            group=group,
        )
    _print_set(name, result, max_rejects, as_json)


@cli.command()
@click.argument("name", metavar="SET")
@click.option(
    "--alignment",
    metavar="NAME",
    help="Align the vectors first.  [default: as the encoders made them, where both modalities have one dimension]",
)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**32 - 1),
    default=0,
    show_default=True,
    help="Of the sample and of everything random.",
)
@click.option(
    "--sample",
    type=click.IntRange(20),
    default=2000,
    show_default=True,
    help="Held-out groups to draw, at most.",
)
@json_option
@home_options
def gap(name: str, alignment: str | None, seed: int, sample: int, as_json: bool, **where: Any) -> None:
    """Measure the modality gap of an embedding set on groups that the fit never saw, with Recall@K beside it.

    How far images and texts lie apart as clouds, with what chance gives, and how pairs lie to each other: docs/audits.md
    explains every number.
    """
    with _home(where) as home:
        result = home.gap(name, alignment=alignment, seed=seed, sample=sample)
    found = result.value
    if as_json:
        print_json(
            {"run": result.run, "set": name, "alignment": alignment, **found.to_json(), "meaning": found.meaning}
        )
    else:
        space = "as encoded" if alignment is None else f"aligned by {alignment}"
        how = f"seed {seed}, {found.settings['normalisation']} vectors, solver {found.gap.solver}"
        print_geometry(found, f"{name} {space}: {found.groups} held-out groups, {found.gap.n} a half, {how}")


def _print_set(name: str, result: "RunResult[EmbeddingSet]", max_rejects: int, as_json: bool) -> None:
    card = result.value.card
    print_result(
        result, {"set": name, **{str(m): n for m, n in card.counts.items()}, "fingerprint": card.fingerprint}, as_json
    )
    _exit_for_rejects(result, max_rejects)
