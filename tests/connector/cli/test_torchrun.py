"""`modalign fit` under torch's own launcher, in two processes on the CPU."""

import shutil
import sys
from pathlib import Path

import numpy as np

from alignment.model.alignment import Alignment
from connector.home import Home
from connector.provenance.database import upgrade
from connector.settings import Settings
from tests.support.cli import done
from tests.support.fakes import fake_rows, fake_set
from tests.support.torchrun import LAUNCHER, run


def test_two_processes_make_one_alignment(tmp_path: Path) -> None:
    """Rank 0 records and writes it, and it is the alignment that one process makes."""
    rng = np.random.default_rng(0)
    Z = rng.standard_normal((80, 6))
    X, Y = (Z @ rng.standard_normal((6, d)) + 0.3 * rng.standard_normal((80, d)) for d in (9, 7))
    settings = Settings.load(home=tmp_path)
    upgrade(settings.database_url)
    fake_set(tmp_path / "sets" / "pairs", fake_rows("image", X), fake_rows("text", Y))
    modalign = shutil.which("modalign", path=str(Path(sys.executable).parent))
    assert modalign is not None
    fit = ("fit", "pairs", "--method", "linear", "--training", "epochs=3", "--training", "batch=20", "--device", "cpu")
    done(*fit, "--alignment", "alone", "--home", tmp_path)
    together = run(*LAUNCHER, "--no-python", modalign, *fit, "--alignment", "together", "--home", str(tmp_path))
    assert together.returncode == 0, together.stderr[-3000:]
    assert together.stdout.count("alignment together: ") == 1
    paths = [tmp_path / "alignments" / name for name in ("alone", "together")]
    vectors = [Alignment.load(path).project("image", X) for path in paths]
    np.testing.assert_allclose(vectors[0], vectors[1], atol=1e-3)
    with Home(settings) as home:
        assert [row.command for row in home.provenance.runs.newest(10)].count("fit") == 2
