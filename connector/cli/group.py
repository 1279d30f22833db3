"""The command group and the exit codes. A command's module is imported when the command runs, or its help is shown."""

from importlib import import_module

import click

FAILED, USAGE, REQUIREMENT, REJECTED, INTERRUPTED = 1, 2, 3, 4, 130

# By module of `connector.cli`, its commands with the first sentence of their help: `modalign --help` imports none.
COMMANDS = {
    "sets": {
        "encode": "Encode CORPUS into an embedding set.",
        "import": "Import VECTORS that were computed elsewhere into an embedding set.",
        "gap": "Measure the modality gap of an embedding set on held-out groups, with Recall@K beside it.",
    },
    "alignments": {
        "fit": "Fit an alignment on embedding sets that hold pairs of images and texts.",
        "compare": "Compare encoder pairs, methods and metrics on your data, and advise which to use.",
        "export": (
            "Write ALIGNMENT under a metric as ONNX graphs, so that a service in any language searches without "
            "modalign."
        ),
    },
    "inventory": {
        "sets": (
            "List the embedding sets, or show NAME: its rows, encoders, groups and captions, and the releases that "
            "hold it."
        ),
        "alignments": (
            "List the alignments, or show NAME: how it was fitted, what it finds of unseen and seen items, and its "
            "releases."
        ),
    },
    "push": {
        "push": "Push an embedding set through an alignment into Qdrant, one release per metric.",
        "ingest": "Encode CORPUS with the alignment's encoders and push it.",
        "delete": (
            "Delete items from every release of COLLECTION and from their embedding sets, after a count and a question."
        ),
    },
    "search": {"search": "Search COLLECTION with QUERY: a text, or the path of an image (recognised by its suffix)."},
    "audits": {
        "audit": (
            "Measure a release with pairs that the fit never saw, and name the stage of the search that loses recall."
        )
    },
    "releases": {
        "promote": "Make the ready releases of COLLECTION live, in place of the live ones.",
        "rollback": ("Undo the last promotion of COLLECTION: the releases that were live before it are live again."),
        "drop": "Drop releases of COLLECTION that are not live, with their points.",
        "verify": "Compare SQL, collections and embedding sets, of COLLECTION or all.",
        "repair": "Verify, repair collections and SQL from the embedding sets where they differ, and verify again.",
    },
    "status": {
        "status": (
            "Show which alignment is live, all releases, of COLLECTION or all, what is to be done, and the last runs."
        )
    },
    "runs": {
        "rejects": "List the items that RUN rejected, with the reasons.",
        "demo": "Run everything once on 1,914 emoji: encode, fit, push under every metric, search, audit.",
    },
    "databases": {"db": "Commands on the provenance database."},
}
MODULES = {name: f"{__package__}.{module}" for module, commands in COMMANDS.items() for name in commands}


class _Command(click.Command):
    """A command that says where an argument belongs that it has no place for."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments; raise a `UsageError` if there are more than the command takes."""
        ctx.allow_extra_args = True
        super().parse_args(ctx, args)
        if ctx.args:
            options = (p for p in self.params if isinstance(p, click.Option) and not p.hidden and not p.is_flag)
            named = next((f"{option.opts[-1]} {option.make_metavar(ctx)}" for option in options), "--help")
            raise click.UsageError(
                f"got an argument too many: {' '.join(ctx.args)}; a value stands behind the name of its option, such as "
                f"{named}, and a text of several words stands in quotes",
                ctx,
            )
        return ctx.args


class Group(click.Group):
    """A group of such commands."""

    command_class = _Command


class LazyGroup(Group):
    """A group that holds a name and a sentence of each command until it is asked for the command itself."""

    group_class = Group

    def load(self, name: str) -> None:
        """Import the module of a command, which puts the command into this group. No-op for a name that is none."""
        if name in MODULES:
            import_module(MODULES[name])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Load the command that the command line names, and find it."""
        self.load(args[0])
        return super().resolve_command(ctx, args)


NAMES = [click.Command(name, help=sentence) for commands in COMMANDS.values() for name, sentence in commands.items()]


@click.group(
    cls=LazyGroup,
    commands=NAMES,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.version_option(package_name="modalign")
def cli() -> None:
    """Align image and text embeddings, serve them from Qdrant, and measure Recall@K.

    `encode` turns a corpus into an embedding set. `fit` fits an alignment on embedding sets. `push` writes a release:
    one alignment under one metric in one Qdrant collection. `search` and `audit` read releases. SQL records every run.

    Start with `modalign demo`. Exit codes: 0 done; 1 failed; 2 usage; 3 an audit's requirement was not met, its
    release is broken, or no audit allows a promotion; 4 done, but more items were rejected than --max-rejects allows;
    130 interrupted. An error ends with its code in brackets, which stays where its words change.

    Tables are as wide as the terminal, or 80 columns in a pipe or a file; COLUMNS sets another width. What has no room
    in a row stands below it, and no name is broken. Sentences are wrapped on a terminal, and are one line each in a
    pipe or a file. Programs read --json, which has all columns and exact names.
    """
    from connector.progress import show_logs  # a command is about to run: `--help` logs nothing

    show_logs()
