"""The networks have the published shapes, and the ImageNet encoder is the wheel's to the last bit."""

from __future__ import annotations

import pytest
import torch

from dicomnode.models.networks import (
    CENet,
    CENetConfig,
    CENetEncoder,
    Compaction,
    EmbeddingNet,
    Lite0Encoder,
    ResNet34Encoder,
    Xception,
    XceptionConfig,
    lite0_state_from_wheel,
    published_xception,
)
from dicomnode.models.training.cenet import imagenet_lite0


def count(net: torch.nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def test_published_cenet_encodes_512_pixels_as_516x16x16() -> None:
    net = CENetEncoder(CENetConfig("resnet34", 1.0, 3)).eval()
    with torch.inference_mode():
        assert net(torch.zeros(1, 3, 512, 512)).shape == (1, 516, 16, 16)
        assert net(torch.zeros(1, 3, 256, 256)).shape == (1, 516, 8, 8)


def test_published_cenet_has_29_million_parameters() -> None:
    assert count(CENet(CENetConfig("resnet34", 1.0, 3))) == pytest.approx(29.0e6, rel=0.005)


def test_resnet_stages_have_the_published_channels_and_strides() -> None:
    net = ResNet34Encoder(3).eval()
    with torch.inference_mode():
        shapes = [tuple(t.shape[1:]) for t in net(torch.zeros(1, 3, 256, 256))]
    assert shapes == [(64, 64, 64), (128, 32, 32), (256, 16, 16), (512, 8, 8)]


def test_half_width_halves_every_stage() -> None:
    assert ResNet34Encoder(1, 0.5).channels == (32, 64, 128, 256)


@pytest.mark.parametrize(("encoder", "width"), [("lite0", 1.0), ("resnet34", 0.25)])
def test_segmentation_has_the_size_of_its_input(encoder: str, width: float) -> None:
    net = CENet(CENetConfig(encoder, width, 1, 2)).eval()  # type: ignore[arg-type]
    with torch.inference_mode():
        assert net(torch.zeros(2, 1, 224, 224)).shape == (2, 2, 224, 224)


def test_native_xception_keeps_every_value_at_its_place() -> None:
    net = Xception(published_xception()).eval()
    assert count(net) == pytest.approx(22.5e6, rel=0.02)
    with torch.inference_mode():
        out = net(torch.randn(1, 516, 16, 16))
    assert out.shape == (1, 516, 16, 16)
    assert float(out.min()) >= 0


def test_lite0_equals_the_wheel_network() -> None:
    wheel = pytest.importorskip("efficientnet_lite_pytorch", reason="pip install 'dicomnode[train]'")
    theirs = wheel.EfficientNet.from_name("efficientnet-lite0")
    state = imagenet_lite0()
    theirs.load_state_dict(state)
    theirs.eval()
    ours = Lite0Encoder(3).eval()
    ours.load_state_dict(lite0_state_from_wheel(state, 3))
    x = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    taps = {2: 0, 4: 1, 10: 2, 15: 3}
    with torch.inference_mode():
        found = ours(x)
        y = theirs._swish(theirs._bn0(theirs._conv_stem(x)))
        for i, block in enumerate(theirs._blocks):
            y = block(y)
            if i in taps:
                torch.testing.assert_close(found[taps[i]], y, rtol=1e-5, atol=1e-5)


def test_grey_stem_sees_what_equal_colours_gave() -> None:
    state = imagenet_lite0()
    grey, colour = Lite0Encoder(1).eval(), Lite0Encoder(3).eval()
    grey.load_state_dict(lite0_state_from_wheel(state, 1))
    colour.load_state_dict(lite0_state_from_wheel(state, 3))
    x = torch.rand(1, 1, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(grey(x)[0], colour(x.repeat(1, 3, 1, 1))[0], rtol=1e-3, atol=1e-3)


def test_an_unknown_encoder_is_refused() -> None:
    with pytest.raises(ValueError, match="resnet34 or lite0"):
        CENetConfig("vgg")  # type: ignore[arg-type]


def test_a_network_too_narrow_to_be_trained_is_refused() -> None:
    with pytest.raises(ValueError, match="width"):
        CENetConfig("resnet34", 0.125)


def test_embedding_net_refuses_an_xception_of_other_channels() -> None:
    with pytest.raises(ValueError, match="516 channels"):
        EmbeddingNet(CENetConfig(), XceptionConfig(in_channels=516), 224, 8)


def test_compaction_keeps_the_neighbours_of_low_rank_data() -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(80, 6, generator=g) @ torch.randn(6, 300, generator=g) + 3.0
    pca = Compaction(300, 6)
    assert pca.fit(x) == pytest.approx(1.0, abs=1e-4)
    small = pca(x)
    centred = x - x.mean(0)
    expected = torch.nn.functional.normalize(centred, dim=1)
    torch.testing.assert_close(small @ small.T, expected @ expected.T, atol=0.02, rtol=0)


def test_compaction_needs_more_images_than_dimensions() -> None:
    with pytest.raises(ValueError, match="more than 8 images"):
        Compaction(100, 8).fit(torch.randn(8, 100))
