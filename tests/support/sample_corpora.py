"""A corpus of every format, from one content: images a.png, b.png and c.png, with the captions of `CAPTIONS`."""

import io
import json
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from tests.support.corpora import Records, write_rows

CAPTIONS = {"a": ['a dog, "running"', "a hound"], "b": ["zwei Katzen \N{CAT FACE}"], "c": ["a boat"]}


def pictures(directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(CAPTIONS):
        Image.new("RGB", (4, 4), (50 * number, 9, 9)).save(directory / f"{name}.png")


def sample_rows(directory: Path) -> Records:
    pictures(directory / "images")
    return [
        {"key": name, "image": f"images/{name}.png", "caption": caption}
        for name, captions in CAPTIONS.items()
        for caption in captions
    ]


def sample_manifest(suffix: str) -> Callable[[Path], Path]:
    def write(directory: Path) -> Path:
        return write_rows(directory, suffix, sample_rows(directory))

    return write


def sample_folder(directory: Path) -> Path:
    pictures(directory / "photos")
    for name, captions in CAPTIONS.items():
        (directory / "photos" / f"{name}.txt").write_text("\n".join(captions), encoding="utf-8")
    return directory / "photos"


def sample_coco(directory: Path) -> Path:
    pictures(directory / "val2017")
    (directory / "annotations").mkdir()
    path = directory / "annotations" / "captions_val2017.json"
    images = [{"id": n, "file_name": f"{name}.png", "height": 4} for n, name in enumerate(CAPTIONS)]
    captioned = [(n, caption) for n, captions in enumerate(CAPTIONS.values()) for caption in captions]
    annotations = [{"id": 90 - n, "image_id": image, "caption": text} for n, (image, text) in enumerate(captioned)]
    path.write_text(json.dumps({"info": {}, "images": images, "annotations": annotations}))
    return path


def sample_karpathy(directory: Path) -> Path:
    pictures(directory / "val2014")
    images = [
        {
            "filepath": "val2014",
            "filename": f"{name}.png",
            "imgid": n,
            "split": "restval",
            "cocoid": n,
            "sentids": [1],
            "sentences": [{"tokens": ["x"], "raw": text} for text in captions],
        }
        for n, (name, captions) in enumerate(CAPTIONS.items())
    ]
    (directory / "dataset_coco.json").write_text(json.dumps({"images": images, "dataset": "coco"}))
    return directory / "dataset_coco.json"


def sample_flickr(directory: Path) -> Path:
    pictures(directory / "flickr30k-images")
    lines = [f"{name}.png#{n}\t{text}" for name, captions in CAPTIONS.items() for n, text in enumerate(captions)]
    (directory / "results.token").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return directory / "results.token"


def write_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as tar:
        for name, content in members:
            header = tarfile.TarInfo(name)
            header.size = len(content)
            tar.addfile(header, io.BytesIO(content))
    return path


def sample_members(directory: Path, captions: Mapping[str, list[str]] = CAPTIONS) -> Iterator[tuple[str, bytes]]:
    pictures(directory / "pictures")
    for name, texts in captions.items():
        yield f"{name}.png", (directory / "pictures" / f"{name}.png").read_bytes()
        yield f"{name}.json", json.dumps({"caption": texts, "width": 4}).encode()


def sample_webdataset(directory: Path) -> Path:
    return write_tar(directory / "samples.tar", sample_members(directory))


def sample_img2dataset(directory: Path) -> Path:
    folder = directory / "downloaded"
    folder.mkdir()
    write_tar(folder / "00000.tar", sample_members(directory))
    table = {"key": [*CAPTIONS], "status": ["success"] * 3, "url": ["http://x/y"] * 3, "error_message": [None] * 3}
    pq.write_table(pa.table(table), folder / "00000.parquet")
    (folder / "00000_stats.json").write_text("{}")
    return folder


SAMPLES: dict[str, Callable[[Path], Path]] = {
    "jsonl": sample_manifest(".jsonl"),
    "csv": sample_manifest(".csv"),
    "parquet": sample_manifest(".parquet"),
    "folder": sample_folder,
    "coco": sample_coco,
    "karpathy": sample_karpathy,
    "flickr": sample_flickr,
    "webdataset": sample_webdataset,
    "img2dataset": sample_img2dataset,
}
