"""The pages on audits explain every number that an audit can give, and its recipes can be read by what they are for."""

import configparser
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import sqlalchemy
import yaml

from connector.audits.measures import MEASURES
from connector.audits.plan import AuditPlan
from connector.audits.requirements import Requirement
from connector.audits.result import FAITHFUL, MARGIN, Audit
from connector.audits.stages import FILTER, INDEX, LOWERING, QUANTIZATION, REFERENCE, RESCORING
from connector.cli import main as cli
from connector.provenance.database import upgrade
from connector.provenance.runs import RunResult
from connector.reports.audit_json import document
from tests.support.world import audit, opened, opened_world, several, the_set

DOCS = Path(__file__).parent.parent / "docs"
PAGES = ("audits.md", "audits-measures.md", "audits-watching.md")
TEXT = "\n".join((DOCS / name).read_text(encoding="utf-8") for name in PAGES)
AUDIT: click.Command = cli.cli.commands["audit"]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Audit]:
    """An audit under a metric that has every stage but quantization, and certificates."""
    with opened_world("edge", tmp_path_factory.mktemp("world")) as world:
        world.alignment()
        world.push(world.set("s", *several(120)), metrics=["chi2"])
        yield audit(opened(world, "chi2"), world.store, the_set(world), queries="all")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


@pytest.mark.parametrize("general", MEASURES)
def test_every_measure_is_explained(general: str) -> None:
    name = general.format(k="K")
    tail = name.partition("@K")[2]  # of fidelity, whose tails share its row
    assert f"`{name}`" in TEXT or (tail and f"`{tail}`" in TEXT)


@pytest.mark.slow
def test_an_audit_measures_every_measure(found: Audit) -> None:
    assert {re.sub(r"@\d+", "@{k}", measure.name) for measure in found.measures} == set(MEASURES)


def test_every_field_of_the_document_is_explained(found: Audit) -> None:
    (table,) = re.findall(r"^\| field of `--json` .*?\n\n", TEXT, re.DOTALL | re.MULTILINE)
    for name in document(RunResult(1, {}, found)):
        assert f"`{name}`" in table, name


def test_what_is_blamed_and_where_results_end_are_as_the_code_has_them() -> None:
    words = " ".join(TEXT.split())
    assert f"less than {FAITHFUL:.0%} of what the stage before finds" in words
    assert f"more than chance and more than {MARGIN}" in words
    lengths = ",".join(map(str, AuditPlan().ks))
    assert f"`--k {lengths}`" in TEXT


def test_the_query_can_be_asked(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'modalign.db'}"
    upgrade(url)
    (query,) = blocks("sql")
    engine = sqlalchemy.create_engine(url)
    with engine.connect() as connection:
        assert connection.execute(sqlalchemy.text(query)).all() == []
    engine.dispose()


@pytest.mark.parametrize("name", [REFERENCE, LOWERING, RESCORING, INDEX, QUANTIZATION, f"{FILTER}NAME"])
def test_every_stage_has_a_row(name: str) -> None:
    assert re.search(rf"^\| `{name}` \|", TEXT, re.MULTILINE)


def test_every_option_of_an_audit_is_named() -> None:
    shared = {"--home", "--qdrant-url", "--database-url", "--device", "--timeout", "-h", "-n"}
    for option in AUDIT.params:
        if isinstance(option, click.Option) and not option.hidden and not shared & set(option.opts):
            assert any(f"`{name}" in TEXT or f" {name} " in TEXT for name in option.opts), option.opts


def test_requirements_that_it_shows_can_be_read() -> None:
    shown = re.findall(r"--require '([^']+)'", TEXT)
    assert len(shown) > 6
    for text in shown:
        Requirement.parse(text)


def lines() -> list[list[str]]:
    """The command lines of the recipes, without the program."""
    (cron,) = blocks("cron")
    unit = next(block for block in blocks("ini") if "[Service]" in block)
    manifest = next(found for found in map(yaml.safe_load, blocks("yaml")) if "kind" in found)
    (container,) = manifest["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    made = [shlex.split(cron.split(maxsplit=5)[5]), shlex.split(read(unit)["Service"]["ExecStart"]), container["args"]]
    return [words[words.index("audit") + 1 :] for words in made]


def read(unit: str) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None, strict=True)
    parser.optionxform = str  # type: ignore[assignment]
    parser.read_string(unit)
    return parser


@pytest.mark.parametrize("number", range(3))
def test_recipes_ask_with_options_that_there_are(number: int) -> None:
    words = [word for word in lines()[number] if not re.match(r"\d*>", word) and word != "/dev/null"]
    words = [word for word in words if not word.endswith(".log")]
    context = AUDIT.make_context("audit", words)
    assert context.params["pairs"] == "shop-test"
    for text in context.params["require"]:
        Requirement.parse(text)


def test_units_name_each_other() -> None:
    service, timer = (read(block) for block in blocks("ini"))
    assert service["Service"]["Type"] == "oneshot"
    assert timer["Install"]["WantedBy"] == "timers.target"
    assert "OnCalendar" in timer["Timer"]


def test_rules_speak_of_metrics_that_are_written() -> None:
    (rules,) = (found for found in map(yaml.safe_load, blocks("yaml")) if "groups" in found)
    source = (Path(cli.__file__).parent / "../reports/prometheus.py").read_text(encoding="utf-8")
    alerts: list[dict[str, Any]] = rules["groups"][0]["rules"]
    assert len(alerts) == 2
    for alert in alerts:
        for metric in re.findall(r"modalign_\w+", alert["expr"]):
            assert f'"{metric}"' in source
