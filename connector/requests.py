"""Requests: what a command is asked to do, as one frozen value a command.

The command line builds the value, the method of `Home` takes it, SQL records its fields as the parameters of the run,
and `modalign rejects --retry` rebuilds it from there. So the fields are named as SQL has them. Imports stay light,
because `modalign --help` loads this module.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Interval

from alignment.modality import MODALITIES, Modality
from alignment.retrieval.cutoffs import KS
from alignment.retrieval.kinds import HELD_OUT
from alignment.retrieval.ways import Way
from connector.errors import SettingsError
from connector.recorded_request import Request
from connector.states import ReleaseState

Scope = Literal["held-out", "all"]
# Bounds of fields. The options of the command line take their ranges from them.
Seed = Annotated[int, Interval(ge=0, le=2**32 - 1)]
Folds = Annotated[int, Interval(ge=2)]
HoldOutShare = Annotated[float, Interval(gt=0, lt=1)]
GapShare = Annotated[float, Interval(ge=0, le=1)]
QuerySample = Annotated[int, Interval(ge=1, le=2**31 - 1)]
GroupSample = Annotated[int, Interval(ge=20)]
IndexRecall = Annotated[float, Interval(ge=0, le=1)]
PruneShare = Annotated[float, Interval(ge=0, le=1)]
PointRate = Annotated[float, Interval(ge=0.001, le=1_000_000_000)]
MaxQps = Annotated[float, Interval(ge=0.001, le=1_000_000)]


def default_of(request: type[Request], name: str) -> Any:
    """Return the default of a field, for the option of that name.

    >>> default_of(FitRequest, "folds")
    4
    """
    return next(entry.default for entry in fields(request) if entry.name == name)


@dataclass(frozen=True, kw_only=True)
class CorpusRequest(Request):
    """Read a corpus.

    Attributes:
        corpus: file, folder or pattern of archives.
        format, images, key_rule, quoting, key, image, caption, group: how to read it, see
            `connector.corpora.formats.open_corpus`.
    """

    corpus: Path
    format: str | None = None
    images: Path | None = None
    key_rule: Literal["first-dot", "last-dot"] | None = None
    quoting: bool | None = None
    key: str | None = None
    image: str | None = None
    caption: Sequence[str] = ()
    group: str | None = None

    def __post_init__(self) -> None:
        Request.__post_init__(self)
        object.__setattr__(self, "caption", tuple(self.caption))

    @property
    def reading(self) -> dict[str, Any]:
        """How to read the corpus, as `connector.corpora.formats.open_corpus` takes it."""
        return {entry.name: getattr(self, entry.name) for entry in fields(CorpusRequest) if entry.name != "corpus"}


@dataclass(frozen=True, kw_only=True)
class PlacedRequest(Request):
    """Have tasks worked on.

    Attributes:
        on, workers, gpus_per_worker: where, see `connector.executors.opening.open_executor`.
    """

    on: str = "local"
    workers: str | None = None
    gpus_per_worker: float = 0.0


@dataclass(frozen=True, kw_only=True)
class UnitsRequest(PlacedRequest, CorpusRequest):
    """Read a corpus and encode its units."""


@dataclass(frozen=True, kw_only=True)
class EncodeRequest(UnitsRequest):
    """Encode a corpus into an embedding set.

    Attributes:
        set: name of the embedding set.
        encoders: spec of an encoder, by modality.
        dtype: type of the stored vectors.
        batch_size: items that the encoder takes at a time.
        shard_size: rows of a shard.

    Raises:
        SettingsError: no encoder.
    """

    command: ClassVar[str] = "encode"
    set: str
    encoders: Mapping[Modality, str]
    dtype: Literal["float32", "float16"] = "float32"
    batch_size: int = 32
    shard_size: int = 1024

    def __post_init__(self) -> None:
        CorpusRequest.__post_init__(self)
        _check_encoders(self.encoders)


@dataclass(frozen=True, kw_only=True)
class ImportRequest(Request):
    """Take vectors that were computed elsewhere into an embedding set.

    Attributes:
        vectors: files; `connector.corpora.vector_files.open_vectors` explains them, `columns`, `metadata`, `key`,
            `group`, `image` and `caption`.
        set: name of the embedding set.
        encoders: name of the encoder that made the vectors, by modality. It is recorded as `imported:NAME`, not
            verified.
        dtype: type of the stored vectors.

    Raises:
        SettingsError: no encoder.
    """

    command: ClassVar[str] = "import"
    vectors: Path
    set: str
    encoders: Mapping[Modality, str]
    columns: Mapping[Modality, str] = field(default_factory=dict)
    metadata: Path | None = None
    key: str | None = None
    group: str | None = None
    image: str | None = None
    caption: str | None = None
    dtype: Literal["float32", "float16"] = "float32"

    def __post_init__(self) -> None:
        Request.__post_init__(self)
        _check_encoders(self.encoders)


@dataclass(frozen=True, kw_only=True)
class FitRequest(Request):
    """Fit an alignment on embedding sets.

    Attributes:
        sets: names of the embedding sets.
        alignment: name of the alignment to make.
        method: `auto` or a name of `alignment.names.METHODS`.
        metrics: metrics to measure; candidates are chosen under the first that learns nothing.
        holdout: share of the groups that the fit never sees, above 0 and below 1.
        folds: of the cross-validation, at least 2.
        seed: of the hold-out and the folds.
        budget: seconds after which no further candidate begins; None: all are tried.
        seen_offset: taken off the scores of items that the fit sees, as a share of the gap; None: the best by
            cross-validation.
        joint: choose under all metrics, and train one projection with all of them.
        training: settings of the training loop by name, see `alignment.fitting.training.Training`.
    """

    command: ClassVar[str] = "fit"
    sets: Sequence[str]
    alignment: str
    method: str = "auto"
    metrics: Sequence[str] = ("cosine",)
    holdout: HoldOutShare = 0.25
    folds: Folds = 4
    seed: Seed = 0
    budget: float | None = None
    seen_offset: GapShare | None = None
    joint: bool = False
    training: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class CompareRequest(Request):
    """Compare encoder pairs, methods and metrics, and write a report.

    Attributes:
        sets: names of the embedding sets.
        methods, metrics: to compare; empty: those of `alignment.comparison.compare`.
        holdout, folds, seed, budget, seen_offset: as for `FitRequest`.
        to: new directory for the report; None: `reports/compare-RUN` in the home.
    """

    command: ClassVar[str] = "compare"
    sets: Sequence[str]
    methods: Sequence[str] = ()
    metrics: Sequence[str] = ()
    holdout: HoldOutShare = 0.25
    folds: Folds = 4
    seed: Seed = 0
    budget: float | None = None
    seen_offset: GapShare | None = None
    to: Path | None = None


@dataclass(frozen=True, kw_only=True)
class GapRequest(Request):
    """Measure the modality gap of held-out groups of an embedding set.

    Attributes:
        set: name of the embedding set.
        alignment: aligns the vectors first; None: they stay as encoded, and must share one dimension.
        seed: of the sample and of everything random.
        sample: most groups to draw, at least 20.
    """

    command: ClassVar[str] = "gap"
    set: str
    alignment: str | None = None
    seed: Seed = 0
    sample: GroupSample = 2000


@dataclass(frozen=True, kw_only=True)
class ReleasesRequest(Request):
    """Write into a collection, one release a metric.

    Attributes:
        into: collection.
        alignment: name of the alignment that projects the vectors.
        metrics: one release each; empty: the alignment's own.
        layout: fields of `connector.stores.layout.Layout` that were given, of new releases.
        fresh_layout: new releases inherit nothing of the live release's layout.
        take_over: claim collections that another database claims, which is lost.
        min_index_recall: share of the exact first hits, and of the first ten, that the index must find, for a release
            to go live; None: any.
        max_points_per_second: to write, over all releases; None: as many as the store takes.
    """

    into: str
    alignment: str
    metrics: Sequence[str] = ()
    layout: Mapping[str, Any] = field(default_factory=dict)
    fresh_layout: bool = False
    take_over: bool = False
    min_index_recall: IndexRecall | None = None
    max_points_per_second: PointRate | None = None


@dataclass(frozen=True, kw_only=True)
class PushRequest(ReleasesRequest):
    """Push an embedding set into a collection, one release a metric.

    Attributes:
        set: name of the embedding set.
    """

    command: ClassVar[str] = "push"
    set: str


@dataclass(frozen=True, kw_only=True)
class IngestRequest(ReleasesRequest, UnitsRequest):
    """Encode a corpus with the encoders of an alignment and push it, in one run.

    Attributes:
        set: name of the embedding set; None: that of the collection.
        prune_at_most: share of the images, and of the texts, of the set that may be deleted because they left the
            corpus. Of more, nothing is deleted.
    """

    command: ClassVar[str] = "ingest"
    set: str | None = None
    prune_at_most: PruneShare = 0.25

    def __post_init__(self) -> None:
        CorpusRequest.__post_init__(self)
        object.__setattr__(self, "set", self.set or self.into)

    @property
    def set_name(self) -> str:
        """The name of the embedding set."""
        return self.set or self.into


@dataclass(frozen=True, kw_only=True)
class MergeStoresRequest(Request):
    """Make one store in SQL of two that are one server.

    Attributes:
        address: at which SQL knows the other one; or its uid.
    """

    command: ClassVar[str] = "merge-stores"
    address: str


@dataclass(frozen=True, kw_only=True)
class DeleteRequest(Request):
    """Delete items from every release of a collection and from their embedding sets.

    Attributes:
        collection: what people say.
        keys: of the items.
        groups: all their items are deleted, images and texts.
        filter: Qdrant filter as JSON on the payload; every item that matches is deleted.
        modalities: of the items.
    """

    command: ClassVar[str] = "delete"
    collection: str
    keys: Sequence[str] = ()
    groups: Sequence[str] = ()
    filter: str | None = None
    modalities: Sequence[Modality] = MODALITIES


@dataclass(frozen=True, kw_only=True)
class SearchRequest(Request):
    """Search the live release of a collection with one text or one image. No run records it.

    Attributes:
        collection: what people say.
        query: a text, or the path of an image: an existing file, or a name with the suffix of an image.
        k: items to find.
        metric: of the release; None: the only one there is, or cosine.
        target: modality to find; None: the other one.
        by: what a text is compared with to find items: their images, their captions, or both.
        filter: Qdrant filter as JSON on the payload.
        exact: compare with every item instead of searching the HNSW graph.
        max_candidates: most candidates to rescore under a metric that rescores; None: the metric's own.
    """

    command: ClassVar[str] = "search"
    collection: str
    query: str
    k: int = 10
    metric: str | None = None
    target: Modality | None = None
    by: Way = "image"
    filter: str | None = None
    exact: bool = False
    max_candidates: int | None = None


@dataclass(frozen=True, kw_only=True)
class PromoteRequest(Request):
    """Make ready releases of a collection live.

    Attributes:
        collection: what people say.
        metrics: only releases under these metrics; empty: all.
        releases: these releases instead of those of the newest alignment.
        reason: why they are promoted whatever the audits say; None: the audits must allow it.
        request: names the request: one that is recorded is finished, and never done twice.
    """

    command: ClassVar[str] = "promote"
    collection: str
    metrics: Sequence[str] = ()
    releases: Sequence[str] = ()
    reason: str | None = None
    request: str | None = None


@dataclass(frozen=True, kw_only=True)
class RollbackRequest(Request):
    """Undo the last promotion of a collection.

    Attributes:
        collection: what people say.
        metrics: only these; empty: all that the last promotion switched.
        to: these releases, which were live once, instead of what the last promotion replaced.
        request: names the request: one that is recorded is finished, and never done twice.
    """

    command: ClassVar[str] = "rollback"
    collection: str
    metrics: Sequence[str] = ()
    to: Sequence[str] = ()
    request: str | None = None


@dataclass(frozen=True, kw_only=True)
class DropRequest(Request):
    """Drop releases of a collection by name; never the live one.

    Attributes:
        collection: what people say.
        releases: by their physical collections.
        taken_over: another database has them: SQL forgets them, live or not, and their collections stay.
    """

    command: ClassVar[str] = "drop"
    collection: str
    releases: Sequence[str]
    taken_over: bool = False


ORPHAN_SHARE = 0.1  # of the points of a release: the command line deletes more orphans only if it is told their number
# The share of the exact first hits, and of the first ten, that an index should find. Audits and production ask other
# queries than the sample of the tuning, so a little more is required than the 0.98 that they rely on.
INDEX_RECALL = 0.99


@dataclass(frozen=True, kw_only=True)
class RepairRequest(Request):
    """Repair live and ready releases from their embedding sets.

    Attributes:
        collection: of the releases; None: all.
        delete_orphans: delete points that no embedding set holds, if there are exactly so many; None: they stay.
        full: compare all vectors, not a sample of them.
    """

    command: ClassVar[str] = "repair"
    collection: str | None = None
    delete_orphans: int | None = None
    full: bool = False


@dataclass(frozen=True, kw_only=True)
class ExportRequest(Request):
    """Write an alignment under a metric as ONNX graphs.

    Attributes:
        alignment: name of the alignment.
        metric: as printed, or with some of its parameters.
        to: directory to write; new, or empty.
        collection: whose live release is searched: its name and its `hnsw_ef` then stand in the requests.
    """

    command: ClassVar[str] = "export"
    alignment: str
    metric: str
    to: Path
    collection: str | None = None


@dataclass(frozen=True, kw_only=True)
class AuditRequest(PlacedRequest):
    """Audit a release of a collection with the pairs of an embedding set.

    Attributes:
        collection: what people say.
        pairs: name of the embedding set with the labelled pairs.
        metric: of the release; None: every metric that a promotion would switch, of `ready`; elsewhere the only one
            there is, or cosine.
        release: `live`, `ready` or the name of a physical collection.
        require: what the measures have to meet, see `connector.audits.requirements`.
        baseline: the audit that drops are measured from: `last`, `live` or the number of one.
        ks, queries, gallery, protocol, filters, slices, sample, seed, max_qps: see `connector.audits.plan.AuditPlan`.
        report: page to write, whatever the verdict is.
    """

    command: ClassVar[str] = "audit"
    collection: str
    pairs: str
    metric: str | None = None
    release: str = ReleaseState.LIVE.value
    require: Sequence[str] = ()
    baseline: str | None = None
    ks: Sequence[int] = KS
    queries: Scope = HELD_OUT
    gallery: Scope = HELD_OUT
    protocol: str | None = None
    filters: Mapping[str, str] = field(default_factory=dict)
    slices: Sequence[str] = ()
    sample: QuerySample | None = None
    seed: Seed = 0
    max_qps: MaxQps | None = None
    report: Path | None = None

    @property
    def is_of_promotion(self) -> bool:
        """Whether it is of all that one promotion would switch."""
        return self.release == ReleaseState.READY and self.metric is None


# Commands that refuse items, and can be run again for these.
RETRIED: Mapping[str, type[EncodeRequest | PushRequest | IngestRequest]] = {
    request.command: request for request in (EncodeRequest, PushRequest, IngestRequest)
}


def _check_encoders(encoders: Mapping[Modality, str]) -> None:
    if not encoders:
        raise SettingsError("expected --image-encoder, --text-encoder or both, got neither")
