"""ResNet and MobileNet: small pictures, other channels, published weights under our names, and groups for parity."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torchvision import models

from cluster.errors import ConfigError
from train_jobs.models import Vision, VisionConfig
from train_jobs.transfer import TransferConfig, load_weights

Kind = Literal["resnet18", "resnet50", "mobilenet_v3"]
KINDS: tuple[Kind, ...] = ("resnet18", "resnet50", "mobilenet_v3")
FEATURES = {"resnet18": 512, "resnet50": 2048, "mobilenet_v3": 1024}
THEIRS = {"resnet18": "resnet18", "resnet50": "resnet50", "mobilenet_v3": "mobilenet_v3_small"}


def pictures(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", KINDS)
def test_small_grey_and_colour_pictures_become_scores(kind: Kind) -> None:
    for small, inputs, classes in ((True, (1, 28, 28), 10), (False, (3, 32, 40), 7)):
        model = VisionConfig(kind=kind, small=small).build(inputs, (classes,)).eval()
        x = pictures(2, *inputs)
        assert model(x).shape == (2, classes)
        assert model.penultimate(x).shape == (2, FEATURES[kind])
        torch.testing.assert_close(model.head(model.penultimate(x)), model(x))


@pytest.mark.parametrize("kind", KINDS)
def test_its_blocks_hold_all_that_it_learns_once(kind: Kind) -> None:
    model = VisionConfig(kind=kind).build((3, 32, 32), (10,))
    held = [id(p) for block in model.blocks() for p in block.parameters()]
    assert sorted(held) == sorted(id(p) for p in model.parameters())
    assert len(set(held)) == len(held)
    assert model.blocks()[-1] is model.head
    first = next(model.blocks()[0].parameters())
    assert first.shape[1] == 3, "the stem"


@pytest.mark.parametrize("kind", KINDS)
def test_torchvision_s_weights_give_torchvision_s_answers(kind: Kind, tmp_path: Path) -> None:
    torch.manual_seed(3)
    theirs = models.get_model(THEIRS[kind], weights=None, num_classes=6).eval()
    torch.save(theirs.state_dict(), tmp_path / "theirs.pth")
    model = VisionConfig(kind=kind).build((3, 64, 64), (6,)).eval()
    left = load_weights(model, TransferConfig(source=str(tmp_path / "theirs.pth")), runs_dir=None)
    assert left == []
    x = pictures(2, 3, 64, 64)
    torch.testing.assert_close(model(x), theirs(x / 255.0), rtol=1e-4, atol=1e-4)


def test_weights_for_colours_see_grey_pictures_as_three_equal_channels(tmp_path: Path) -> None:
    theirs = models.resnet18(weights=None).eval()
    torch.save(theirs.state_dict(), tmp_path / "theirs.pth")
    model = VisionConfig().build((1, 64, 64), (10,)).eval()
    left = load_weights(model, TransferConfig(source=str(tmp_path / "theirs.pth")), runs_dir=None)
    assert left == ["head.weight", "head.bias"], "1,000 classes there, ten here"
    x = pictures(2, 1, 64, 64)
    theirs.fc = nn.Identity()
    torch.testing.assert_close(model.penultimate(x), theirs((x / 255.0).expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-4)


def test_a_small_stem_keeps_the_size() -> None:
    sizes = {}
    for small in (False, True):
        model = VisionConfig(small=small).build((3, 32, 32), (10,)).eval()
        model.body.layer1.register_forward_hook(lambda _, __, out, small=small: sizes.update({small: out.shape[2:]}))
        model(pictures(1, 3, 32, 32))
    assert sizes == {False: (8, 8), True: (32, 32)}
    mobile = VisionConfig(kind="mobilenet_v3", small=True).build((3, 32, 32), (10,)).eval()
    x = mobile.preprocess(pictures(1, 3, 32, 32))
    assert mobile.body.features[1](mobile.body.features[0](x)).shape[2:] == (32, 32)
    assert mobile.body.features(x).shape[2:] == (4, 4)


@pytest.mark.parametrize("kind", ["resnet18", "mobilenet_v3"])
def test_with_groups_no_sample_looks_at_another(kind: Kind) -> None:
    x = pictures(3, 3, 32, 32)
    for norm, alike in (("group", True), ("batch", False)):
        model = VisionConfig(kind=kind, norm=norm).build((3, 32, 32), (5,)).double().train()
        batch_norm = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())
        assert batch_norm == (norm == "batch")
        if alike:
            torch.testing.assert_close(model(x)[:1], model(x[:1]))
        else:
            assert not torch.allclose(model(x)[:2], model(x[:2]))


@pytest.mark.parametrize("kind", ["resnet18", "mobilenet_v3"])
def test_it_is_exported_with_a_free_batch(kind: Kind) -> None:
    model = VisionConfig(kind=kind, small=True).build((3, 32, 32), (4,)).eval()
    program = torch.export.export(
        model, (pictures(2, 3, 32, 32),), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},)
    )
    x = pictures(5, 3, 32, 32)
    torch.testing.assert_close(program.module()(x), model(x), rtol=1e-4, atol=1e-5)


def test_other_shapes_are_refused_with_the_way_out() -> None:
    for inputs, outputs in (((28, 28), (10,)), ((1, 16, 16), (10,)), ((3, 32, 32), (24, 7))):
        with pytest.raises(ConfigError, match=r"model.kind=resnet18 takes pictures of 28x28 or more"):
            VisionConfig().build(inputs, outputs)


def test_without_a_network_published_weights_are_a_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.delenv("SLUICE_OFFLINE", raising=False)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nothing listens on the discard port: no network, at once
    monkeypatch.setenv("no_proxy", "")
    model = VisionConfig().build((3, 32, 32), (10,))
    with pytest.raises(ConfigError, match=r"the download failed .*fetch https://.*resnet18.* set transfer\.source"):
        load_weights(model, TransferConfig(source="torchvision"), runs_dir=None)
    monkeypatch.setenv("SLUICE_OFFLINE", "1")
    with pytest.raises(ConfigError, match=r"is a download, and SLUICE_OFFLINE is set; fetch https://"):
        load_weights(model, TransferConfig(source="torchvision"), runs_dir=None)
    grouped = VisionConfig(norm="group").build((3, 32, 32), (10,))
    with pytest.raises(ConfigError, match=r"learned with batch normalisation; set model\.norm=batch"):
        grouped.published_weights()


def test_published_weights_are_found_in_the_cache_of_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("SLUICE_OFFLINE", "1")
    torch.manual_seed(5)
    theirs = models.mobilenet_v3_small(weights=None)
    published = models.get_model_weights("mobilenet_v3_small").DEFAULT
    (tmp_path / "hub/checkpoints").mkdir(parents=True)
    torch.save(theirs.state_dict(), tmp_path / "hub/checkpoints" / published.url.rsplit("/", 1)[1])
    model = VisionConfig(kind="mobilenet_v3").build((3, 32, 32), (10,))
    assert isinstance(model, Vision)
    left = load_weights(model, TransferConfig(source="torchvision"), runs_dir=None)
    assert left == ["head.weight", "head.bias"]
    assert torch.equal(model.body.features[3].block[0][0].weight, theirs.features[3].block[0][0].weight)


@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize(("kind", "width", "features"), [
    ("resnet18", 0.5, 256), ("resnet18", 0.1, 64), ("resnet50", 0.25, 512), ("mobilenet_v3", 0.5, 512),
])  # fmt: skip
def test_a_width_multiplies_every_layer(
    kind: Kind, width: float, features: int, norm: Literal["batch", "group"]
) -> None:
    model = VisionConfig(kind=kind, width=width, norm=norm, small=True).build((1, 28, 28), (10,)).eval()
    x = pictures(2, 1, 28, 28)
    assert model(x).shape == (2, 10)
    assert model.penultimate(x).shape == (2, features)
    whole = VisionConfig(kind=kind, norm=norm, small=True).build((1, 28, 28), (10,))
    thin, full = (sum(p.numel() for p in each.parameters()) for each in (model, whole))
    assert thin < 1.4 * width * full, "roughly by its square"


def test_resized_to_what_it_was_it_is_the_published_one() -> None:
    model = VisionConfig(kind="resnet50", blocks=6).build((3, 32, 32), (10,))
    published = VisionConfig(kind="resnet50").build((3, 32, 32), (10,))
    mine, theirs = ({k: v.shape for k, v in each.state_dict().items()} for each in (model, published))
    assert mine == theirs


def test_fewer_blocks_are_the_first_of_each_stage() -> None:
    model = VisionConfig(kind="resnet50", blocks=2).build((3, 32, 32), (10,))
    assert [len(getattr(model.body, f"layer{stage}")) for stage in (1, 2, 3, 4)] == [2] * 4
    assert model.eval()(pictures(2, 3, 32, 32)).shape == (2, 10)


def test_blocks_of_a_mobilenet_are_refused() -> None:
    with pytest.raises(ValidationError, match="blocks=1 is for a ResNet, and mobilenet_v3 has none"):
        VisionConfig(kind="mobilenet_v3", blocks=1)


def test_published_weights_are_for_the_whole_network() -> None:
    model = VisionConfig(kind="resnet18", width=0.5).build((3, 32, 32), (10,))
    with pytest.raises(ConfigError, match=r"are for the whole resnet18; set model\.width=1"):
        model.published_weights()
