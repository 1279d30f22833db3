"""The commands `sets` and `alignments`: list what a home holds, or show one."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from alignment.errors import AlignmentError, EmbeddingSetError
from alignment.modality import MODALITIES
from alignment.names import names_there
from alignment.plurals import counted, plural
from connector.cli.group import cli
from connector.cli.opening import minute, open_home, say_if_new
from connector.cli.options import home_options, json_option
from connector.cli.tables import print_fields, print_json, print_recalls, print_table, show
from connector.settings import checked_name
from connector.states import ReleaseState

if TYPE_CHECKING:
    from alignment.sets.cards import EncoderCard
    from connector.provenance.tables import ReleaseRow
    from connector.releases.inventory import HeldAlignment, HeldSet, SetGroups

SHORT = 12  # characters of a fingerprint that people read


@cli.command()
@click.argument("name", required=False)
@json_option
@home_options
def sets(name: str | None, as_json: bool, where: Mapping[str, Any]) -> None:
    """List the embedding sets, or show NAME: its rows, encoders, groups and captions, and the releases that hold it."""
    with open_home(where) as home:
        say_if_new(home, name)
        held = home.sets()
        if name is None:
            documents = [_set_document(one) for one in held]
        else:
            one = _named(held, name, "embedding set", EmbeddingSetError)
            groups = home.set_groups(one)
    if name is not None:
        _show_set(one, groups, as_json)
    elif as_json:
        print_json({"sets": documents})
    else:
        print_table(map(_set_row, held), f"embedding sets of {home.settings.home}")
        _show_faults(held)


@cli.command()
@click.argument("name", required=False)
@json_option
@home_options
def alignments(name: str | None, as_json: bool, where: Mapping[str, Any]) -> None:
    """List the alignments, or show NAME: how it was fitted, what it finds of unseen and seen items, and its releases."""
    with open_home(where) as home:
        say_if_new(home, name)
        held = home.alignments()
        names = {one.card.fingerprint: one.name for one in home.sets() if one.card is not None}
    if name is not None:
        _show_alignment(_named(held, name, "alignment", AlignmentError), names, as_json)
    elif as_json:
        print_json({"alignments": [_alignment_document(one, names) for one in held]})
    else:
        print_table(map(_alignment_row, held), f"alignments of {home.settings.home}")
        _show_faults(held)


def _named(held: "Sequence[Any]", name: str, what: str, kind: type[EmbeddingSetError | AlignmentError]) -> Any:
    """Return the one of that name; of several, the one that can be used.

    Raises:
        EmbeddingSetError, AlignmentError: there is none.
    """
    checked_name(name, what)
    of_name = sorted((one for one in held if one.name == name), key=lambda one: bool(one.fault))
    if not of_name:
        known = names_there(name, (one.name for one in held))
        raise kind(f"expected the name of an {what}, got {name!r}; this home has {known}")
    return of_name[0]


def _show_faults(held: "Sequence[HeldSet | HeldAlignment]") -> None:
    for one in held:
        if one.fault:
            show(f"{one.name}: {one.fault}")


def _set_row(held: "HeldSet") -> dict[str, Any]:
    """Lay out a set for the list."""
    encoders = held.card.encoders if held.card else {}
    return {
        "set": held.name,
        **{plural(modality): held.counts.get(modality) for modality in MODALITIES},
        **{f"{modality} encoder": card.spec for modality, card in encoders.items()},
        "in collections": ", ".join(held.collections),
        "": "" if not held.fault else "see below",
    }


def _set_document(held: "HeldSet") -> dict[str, Any]:
    """Lay out a set as JSON."""
    card = held.card
    return {
        "set": held.name,
        "path": str(held.path),
        "fault": held.fault or None,
        "complete": card.complete if card else None,
        "counts": dict(held.counts),
        "encoders": {modality: asdict(encoder) for modality, encoder in card.encoders.items()} if card else {},
        "truncated": card.truncated if card else None,
        "dtype": card.dtype if card else None,
        "corpus": card.corpus if card else None,
        "fingerprint": card.fingerprint if card else None,
        "updated": minute(held.updated_at),
        "releases": [
            {**_release(release), "points_of_set": points, "lag": sum(held.counts.values()) - points}
            for release, points in held.releases
        ],
    }


def _show_set(held: "HeldSet", groups: "SetGroups | None", as_json: bool) -> None:
    document = _set_document(held)
    if groups is not None:
        captions = {str(number): images for number, images in sorted(groups.captions.items())}
        document["groups"] = {"count": groups.groups, "with_image_and_text": groups.paired, "captions": captions}
    if as_json:
        print_json(document)
        return
    fields: dict[str, Any] = {plural(modality): f"{count:,}" for modality, count in held.counts.items()}
    if groups is not None:
        fields["groups"] = f"{groups.groups:,}, {groups.paired:,} of them with an image and a text"
        fields["captions"] = "; ".join(
            f"{counted(images, 'image')} with {counted(number, 'caption')}"
            for number, images in sorted(groups.captions.items(), reverse=True)
        )
    if held.card is not None:
        if held.card.truncated:
            fields["truncated"] = f"{counted(held.card.truncated, 'caption')} longer than the text encoder reads"
        fields |= _encoders(held.card.encoders)
        fields |= {"vectors": held.card.dtype, "corpus": held.card.corpus}
        fields["fingerprint"] = held.card.fingerprint[:SHORT]
    fields |= {"recorded": minute(held.updated_at), "path": held.path, "fault": held.fault}
    print_fields(fields, f"embedding set {held.name}")
    rows = sum(held.counts.values())
    releases = [{**_release_row(release), "points": points, "lag": rows - points} for release, points in held.releases]
    print_table(releases, "releases that hold it, with the points of this set, and how many are not pushed yet")


def _alignment_row(held: "HeldAlignment") -> dict[str, Any]:
    """Lay out an alignment for the list."""
    card = held.card
    live, waiting = (
        {release.collection for release in held.releases if release.state in states}
        for states in ({ReleaseState.LIVE}, {ReleaseState.READY, ReleaseState.BUILDING})
    )
    return {
        "alignment": held.name,
        "fingerprint": held.fingerprint[:8],
        "method": card.method if card else "",
        **{f"{modality} encoder": encoder.spec for modality, encoder in (card.encoders if card else {}).items()},
        "live in": ", ".join(sorted(live)),
        "waits in": ", ".join(sorted(waiting - live)),
        "": "" if not held.fault else "see below",
    }


def _alignment_document(held: "HeldAlignment", sets: Mapping[str, str]) -> dict[str, Any]:
    """Lay out an alignment as JSON; `sets` are names of embedding sets by fingerprint."""
    return {
        "alignment": held.name,
        "path": str(held.path),
        "fault": held.fault or None,
        "fingerprint": held.fingerprint or None,
        "dim": held.held.dim if held.held else None,
        "created": minute(held.created_at),
        "card": asdict(held.card) if held.card else None,
        "set_names": [sets.get(fingerprint) for fingerprint in held.card.sets] if held.card else [],
        "releases": [_release(release) for release in held.releases],
    }


def _show_alignment(held: "HeldAlignment", sets: Mapping[str, str], as_json: bool) -> None:
    if as_json:
        print_json(_alignment_document(held, sets))
        return
    card = held.card
    fields: dict[str, Any] = {"fault": held.fault}
    if card is not None and held.held is not None:
        fields |= {
            "method": card.method,
            "hyperparameters": _pairs(card.hyperparameters),
            "metrics": ", ".join(card.metrics),
            "dimensions": held.held.dim,
            **_encoders(card.encoders),
            "sets": ", ".join(sets.get(one, f"one that changed since, {one[:SHORT]}") for one in card.sets),
            "fitted on": counted(card.pairs, "pair"),
            "held out": f"{card.hold_out.fraction:.0%} of the groups, by a hash with seed {card.hold_out.seed}",
            "candidates": f"{counted(card.candidates, 'candidate')} tried",
            "training": _pairs(card.training),
            "seen offsets": "; ".join(f"{metric}: {_pairs(of)}" for metric, of in card.seen_offsets.items()),
            "versions": _pairs(card.versions),
        }
    fields |= {"fingerprint": held.fingerprint[:SHORT], "recorded": minute(held.created_at), "path": held.path}
    print_fields(fields, f"alignment {held.name}")
    if card is not None:
        print_recalls(card)
    print_table(map(_release_row, held.releases), "releases of it")


def _pairs(values: Mapping[Any, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _encoders(encoders: "Mapping[Any, EncoderCard]") -> dict[str, str]:
    return {f"{modality} encoder": str(card) for modality, card in encoders.items()}


def _release(release: "ReleaseRow") -> dict[str, Any]:
    columns = ("collection", "metric", "state", "points", "physical_name")
    return {name: getattr(release, name) for name in columns}


def _release_row(release: "ReleaseRow") -> dict[str, Any]:
    columns = ("collection", "state", "metric", "physical_name", "points")
    return {name.replace("physical_name", "release"): getattr(release, name) for name in columns}
