"""Backbones in the registry: versions, the champion, and the same network back."""

from pathlib import Path

import pytest
import torch
from tracked_runs import finish, runs_of, stage

from dinov2.hub import BackboneCard, save_backbone
from dinov2.models.params import ViTParams
from dinov2.models.vit import VisionTransformer
from dinov2.params import InputError
from dinov2.records import sha256_file
from tasks.registry import fetch, main, open_backbone
from tasks.server import Server, TrackingParams, connect
from tasks.tracked import WEIGHTS, WORK
from tasks.tracking import ship

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:sqlalchemy", "ignore::DeprecationWarning:mlflow")
TINY = ViTParams(
    patch_size=8, dim=8, depth=1, heads=2, ffn="mlp", num_registers=0, layerscale=1.0, drop_path=0.0,
    image_size_px=16, interpolate_offset=0.0, interpolate_antialias=False,
)  # fmt: skip
CHAMPION = "models:/tests-pretrain@champion"


def train(seed: int) -> Path:
    """A training that ends with a backbone of its own."""
    torch.manual_seed(seed)
    out = Path(f"data/{seed}")
    card = BackboneCard(
        architecture=TINY, image_size_px=16, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2), training={}, licence="none"
    )
    save_backbone(out, VisionTransformer(TINY), card)
    finish(stage("pretrain", models=["pretrain"], seed=seed), {"final": 0.5}, out)
    return out


def evaluate(backbone: Path, knn: float, *, model: str = "pretrain", judge: int = 1, status: str = "FINISHED") -> None:
    """An evaluation that ends so."""
    tracked = stage("evaluate", model=model, seed=judge)
    tracked.mark["judged"]["sha256"] = sha256_file(backbone / WEIGHTS)
    finish(tracked, {"knn_top1": knn}, Path("data/evaluate"), status)


def champion(given: TrackingParams) -> str | None:
    """sha256 of its weights."""
    server, _ = registered(given)
    version = server.client.get_registered_model("tests-pretrain").aliases.get("champion")
    return None if version is None else server.client.get_model_version("tests-pretrain", str(version)).tags["sha256"]


def registered(given: TrackingParams) -> tuple[Server, list[str]]:
    """Server and its registered models' names."""
    server = connect(given)
    return server, [model.name for model in server.client.search_registered_models()]


def test_the_champion_met_its_gates_with_the_best_knn_of_those_judged_alike(given: TrackingParams) -> None:
    first, second = train(1), train(2)
    evaluate(first, 0.5)
    assert ship(given, WORK) is None
    assert champion(given) == sha256_file(first / WEIGHTS)
    evaluate(second, 0.6)
    assert ship(given, WORK) is None
    assert champion(given) == sha256_file(second / WEIGHTS)
    evaluate(second, 0.7, status="FAILED")  # a gate is missed
    assert ship(given, WORK) is None
    assert champion(given) == sha256_file(first / WEIGHTS)
    evaluate(second, 0.1, judge=2)  # of another evaluation, which the first was not in
    assert ship(given, WORK) is None
    assert champion(given) == sha256_file(second / WEIGHTS)


def test_there_is_no_champion_where_none_met_its_gates(given: TrackingParams) -> None:
    first = train(1)
    evaluate(first, 0.5)
    assert ship(given, WORK) is None
    evaluate(first, 0.5, status="FAILED")
    assert ship(given, WORK) is None
    assert champion(given) is None


def test_an_untrained_network_is_registered_nowhere(given: TrackingParams) -> None:
    evaluate(train(1), 0.5, model="random")
    assert ship(given, WORK) is None
    server, names = registered(given)
    assert names == ["tests-pretrain"]
    [version] = server.client.search_model_versions("name = 'tests-pretrain'")
    assert "knn_top1" not in version.tags


def test_a_champion_is_opened_with_its_weights_and_says_what_it_takes_and_gives(given: TrackingParams) -> None:
    from mlflow.models import Model

    out = train(1)
    evaluate(out, 0.5)
    assert ship(given, WORK) is None
    network, card = open_backbone(given, CHAMPION)
    assert card.image_size_px == 16
    fetch(given, CHAMPION, Path("fetched"))
    assert (Path("fetched") / WEIGHTS).read_bytes() == (out / WEIGHTS).read_bytes()
    signature = Model.load("fetched").signature
    assert signature is not None and signature.inputs is not None and signature.outputs is not None
    [images] = signature.inputs.to_dict()
    assert images["tensor-spec"] == {"dtype": "float32", "shape": (-1, 3, 16, 16)}
    features = network.features(torch.zeros(2, 3, 16, 16))
    shapes = {each["name"]: each["tensor-spec"]["shape"] for each in signature.outputs.to_dict()}
    assert shapes == {"cls": (-1, *features.cls.shape[1:]), "patches": (-1, *features.patches.shape[1:])}
    assert not [path for path in Path("fetched").iterdir() if path.suffix in (".pkl", ".pt", ".pth")]


def test_a_training_is_one_version_and_shows_how_it_was_judged(given: TrackingParams) -> None:
    out = train(1)
    evaluate(out, 0.5)
    assert ship(given, WORK) is None
    finish(stage("pretrain", models=["pretrain"], seed=1), {"final": 0.5}, out)  # by force, with the same result
    assert ship(given, WORK) is None
    server, runs = runs_of(given)
    [version] = server.client.search_model_versions("name = 'tests-pretrain'")
    assert version.run_id == runs["model", "pretrain"].info.run_id
    assert runs["model", "pretrain"].data.metrics["evaluate/knn_top1"] == 0.5


def test_an_experiment_may_have_a_name_that_no_model_may_have(given: TrackingParams) -> None:
    team = given.model_copy(update={"experiment": "anna's/vision: one"})
    train(1)
    assert ship(team, WORK) is None
    _, names = registered(team)
    assert names == ["anna-s-vision- one-pretrain"]


def test_a_model_that_is_not_there_is_a_mistake(given: TrackingParams, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match="models:/tests-no@champion can't be fetched from sqlite"):
        fetch(given, "models:/tests-no@champion", Path("fetched"))
    Path("there").mkdir()
    Path("params.yaml").write_text(
        f"tracking: {{uri: '{given.uri}', experiment: tests, ship_every_s: 0.1, idle_s: 1.0}}\n"
    )
    assert main([CHAMPION, "--out", "there"]) == 2
    assert capsys.readouterr().err == "registry: there exists; remove it or give another --out\n"
