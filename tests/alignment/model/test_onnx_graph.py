"""Writing graphs: what is saved is mapped, and computes the same."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from alignment.model.onnx_graph import WEIGHTS, open_graph, save_graph, write_graph


@pytest.mark.slow
def test_a_saved_graph_computes_what_the_module_does_for_any_number_of_rows(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = nn.Linear(64, 48).eval()
    onnx = write_graph(module, {"x": torch.ones(3, 64)}, ["y"], {0: "rows"})
    save_graph(onnx, tmp_path / "a.onnx")
    assert (tmp_path / "a.onnx").stat().st_size < 64 * 48 * 4 <= (tmp_path / f"a{WEIGHTS}").stat().st_size
    assert {path.stat().st_mode for path in tmp_path.iterdir()} == {(tmp_path / "a.onnx").stat().st_mode}
    for rows in (1, 5):
        x = np.random.default_rng(rows).standard_normal((rows, 64)).astype(np.float32)
        with torch.no_grad():
            expected = module(torch.from_numpy(x)).numpy()
        for session in (open_graph(onnx), open_graph(tmp_path / "a.onnx")):
            (y,) = session.run(["y"], {"x": x})
            np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)
