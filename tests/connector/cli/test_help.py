"""Help texts: every command and option has one, fast, and docs/cli.md shows them."""

import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from alignment import names
from alignment.fitting.closed_forms import CLOSED_FORMS
from alignment.fitting.heads import HEADS
from alignment.fitting.methods import METHODS
from alignment.metrics import METRICS
from alignment.retrieval.protocols import PROTOCOLS
from connector.cli import group
from connector.cli import main as cli
from connector.cli.reference import reference
from connector.corpora import FORMAT_NAMES
from connector.corpora.formats import FORMATS
from tests.support.cli import COMMANDS, modalign

ROOT = Path(__file__).parents[3]


class TestHelp:
    @pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
    def test_every_command_and_option_has_a_help_text(self, words: tuple[str, ...]) -> None:
        result = CliRunner().invoke(cli.cli, [*words, "--help"])
        assert result.exit_code == 0
        assert len((COMMANDS[words].help or "").split()) > 3
        for option in COMMANDS[words].params:
            if isinstance(option, click.Option):
                assert option.help, option.name
                assert len(re.sub(r"\[default:.*\]$", "", option.help).split()) > 1, option.name

    def test_the_reference_in_the_docs_is_what_the_commands_print(self) -> None:
        written = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
        assert written == reference(), "run `python -m connector.cli.reference > docs/cli.md`"

    def test_names_in_help_texts_are_those_of_the_registries(self) -> None:
        assert list(names.METRICS) == list(METRICS)
        assert (tuple(CLOSED_FORMS), tuple(HEADS)) == (names.CLOSED_FORMS, names.HEADS)
        assert (*names.CLOSED_FORMS, *names.HEADS) == METHODS
        assert tuple(PROTOCOLS) == names.PROTOCOLS
        assert tuple(FORMATS) == FORMAT_NAMES

    @pytest.mark.parametrize(
        ("arguments", "notice"),
        [
            (("audit", "x", "--pairs", "p", "--against", "last"), "--against is now --baseline"),
            (("audit", "x", "--pairs", "p", "--by", "a"), "--by is now --slice"),
            (("audit", "x", "--pairs", "p", "--rate", "3"), "--rate is now --max-qps"),
            (
                ("push", "s", "--into", "x", "--alignment", "a", "--settings", "layout.toml"),
                "--settings is now --layout",
            ),
            (("status", "--verify"), "--verify is now `modalign verify`"),
            (("status", "--repair"), "--repair is now `modalign repair`"),
        ],
    )
    def test_an_old_name_works_and_says_its_new_one(
        self, tmp_path: Path, arguments: tuple[str, ...], notice: str
    ) -> None:
        ended = modalign(*arguments, "--home", tmp_path / "none")
        said = [line for line in ended.err.splitlines() if "the old name goes in the next release" in line]
        assert said == [f"{notice}; the old name goes in the next release"]
        assert "No such option" not in ended.err

    def test_a_value_under_an_old_name_arrives(self) -> None:
        words = ["x", "--pairs", "p", "--against", "last", "--by", "a", "--by", "b", "--rate", "3"]
        params = COMMANDS["audit",].make_context("audit", words).params
        assert (params["baseline"], params["slices"], params["max_qps"]) == ("last", ("a", "b"), 3.0)
        params = COMMANDS["audit",].make_context("audit", ["x", "--baseline", "2", "--pairs", "p"]).params
        assert (params["baseline"], params["slices"], params["max_qps"]) == ("2", (), None)

    @pytest.mark.parametrize("names", [("--by", "--slice"), ("--slice", "--by"), ("--against", "--baseline")])
    def test_both_names_at_once_are_refused(self, names: tuple[str, str]) -> None:
        words = ["x", "--pairs", "p", *(word for name in names for word in (name, "v"))]
        with pytest.raises(click.UsageError) as caught:
            COMMANDS["audit",].make_context("audit", words)
        assert all(name in caught.value.message for name in names)

    def test_the_groups_help_names_every_command_and_exit_code(self) -> None:
        result = CliRunner().invoke(cli.cli, ["--help"])
        for words in COMMANDS:
            assert words[0] in result.output
        for code in ("0 done", "1 failed", "2 usage", "3 an audit's requirement", "4 done", "130 interrupted"):
            assert code in " ".join(result.output.split())

    def test_the_groups_help_shows_the_first_sentence_of_each_commands_own(self) -> None:
        own = {words[:1]: " ".join((command.help or "").split()) for words, command in COMMANDS.items()}
        own["db",] = cli.cli.commands["db"].help or ""
        for sentences in group.COMMANDS.values():
            for name, sentence in sentences.items():
                assert own[name,].startswith(sentence), name
                assert own[name,].removeprefix(sentence)[:1] in ("", " "), name
                assert re.search(r"\. |\.$", sentence, re.MULTILINE) is not None, name
        assert {name for (name,) in own} == group.MODULES.keys()

    @pytest.mark.parametrize("words", [("--help",), ("-h",), ("--version",)])
    def test_the_groups_help_imports_no_command(self, words: tuple[str, ...]) -> None:
        heavy = ["logging", "json", "connector.progress", "connector.requests", *group.MODULES.values()]
        assert self.loaded(heavy, words) == "[] 0\n"

    def test_a_command_that_is_not_there_is_compared_with_those_that_are(self) -> None:
        ended = modalign("serach", "x", "y")
        assert ended.code == 2
        assert "search" in ended.err

    @pytest.mark.parametrize("words", [("--help",), ("encode", "--help"), ("db", "upgrade", "--help"), ("--version",)])
    def test_help_loads_nothing_heavy(self, words: tuple[str, ...]) -> None:
        heavy = ["numpy", "torch", "sqlalchemy", "alembic", "pyarrow", "qdrant_client", "qdrant_edge", "scipy", "rich"]
        assert self.loaded(heavy, words) == "[] 0\n"

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "words",
        [("status",), ("status", "things"), ("status", "--json"), ("rejects",), ("sets",), ("alignments", "--json")],
    )
    def test_what_only_reads_sql_and_cards_loads_nothing_that_other_commands_need(
        self, shared: Path, words: tuple[str, ...]
    ) -> None:
        engines = ["qdrant_client", "qdrant_edge", "alembic", "pyarrow", "numpy", "scipy", "torch", "onnxruntime"]
        others = ["pydantic", "yarl", "filelock", "annotated_types", "PIL", "jinja2", "matplotlib", "sklearn"]
        others += ["rich", "secrets"]
        ours = ["alignment.metrics", "alignment.model.alignment", "connector.requests", "connector.stores.contract"]
        assert self.loaded([*engines, *others, *ours], (*words, "--home", str(shared))) == "[] 0\n"

    @pytest.mark.slow
    def test_search_loads_nothing_that_only_reads_embedding_sets(self) -> None:
        heavy = ["pyarrow", "scipy", "sklearn", "alembic", "matplotlib", "qdrant_client", "torch"]
        script = (
            "import sys, connector.home, connector.search.query, connector.stores.edge, alignment.model.onnx_graph\n"
            f"print([m for m in {heavy!r} if m in sys.modules])"
        )
        ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        assert ended.stdout == "[]\n"

    @pytest.mark.slow
    def test_a_history_loads_nothing_that_measures_searches_or_draws(self, shared: Path) -> None:
        heavy = ["torch", "scipy", "sklearn", "matplotlib", "PIL", "jinja2", "qdrant_client", "qdrant_edge", "alembic"]
        asked = ("audit", "things", "--history", "--home", str(shared))
        assert self.loaded(heavy, asked).endswith("[] 0\n")

    @pytest.mark.slow
    def test_a_push_of_nothing_new_loads_nothing_to_convert_columns_or_check_settings_with(self, home: Path) -> None:
        heavy = ["pandas", "pyarrow.compute", "pydantic", "torch", "qdrant_client", "alembic"]
        asked = ("push", "pairs", "--into", "things", "--alignment", "a", "--home", str(home))
        assert self.loaded(heavy, asked).endswith("[] 0\n")

    def test_a_command_does_not_look_for_garbage_in_what_its_imports_made(self, shared: Path) -> None:
        program = f"""
import atexit, gc, sys
from connector.cli.entry import main
atexit.register(lambda: print(gc.get_freeze_count(), gc.get_stats()[2]["collections"], file=sys.stderr))
sys.argv = ["modalign", "status", "--home", {str(shared)!r}]
main()
"""
        ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        frozen, collections = map(int, ended.stderr.split())
        assert frozen > 50_000
        assert collections == 0

    def test_what_came_with_torch_is_collected_at_the_end_because_some_of_it_complains_if_not(
        self, shared: Path
    ) -> None:
        program = f"""
import atexit, gc, sys, types
from connector.cli.entry import main
sys.modules["torch"] = types.ModuleType("torch")
atexit.register(lambda: print(gc.get_freeze_count(), file=sys.stderr))
sys.argv = ["modalign", "status", "--home", {str(shared)!r}]
main()
"""
        ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        assert ended.stderr == "0\n"

    @staticmethod
    def loaded(heavy: Sequence[str], words: Sequence[str]) -> str:
        """Run a command in a process of its own; return which of these modules it loaded, and its exit code."""
        script = (
            "import sys; from connector.cli import main as cli\n"
            f"sys.argv = ['modalign', *{list(words)!r}]\n"
            "try: cli.main()\n"
            f"except SystemExit as end: print([m for m in {heavy!r} if m in sys.modules], end.code, file=sys.stderr)\n"
        )
        ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        return ended.stderr
