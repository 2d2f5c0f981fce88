"""fastai's mxresnet50 becomes ours under its own names, to the same logits."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import spectral_norm

from ichfast.errors import ModelError
from ichfast.fastai_keys import from_fastai_mxresnet, is_fastai_mxresnet
from ichfast.models.build import build_model


class FastaiAttention(nn.Module):
    """`SimpleSelfAttention`, with the spectral norm that torch had in 2019."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = spectral_norm(nn.Conv1d(channels, channels, 1, bias=False))
        self.gamma = nn.Parameter(torch.tensor([0.0]))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BCN = x_BCHW.flatten(2)
        product_BCC = x_BCN @ x_BCN.mT
        return (self.gamma * (product_BCC @ self.conv(x_BCN)) + x_BCN).view_as(x_BCHW)


def fastai_conv(
    channels_in: int, channels: int, size: int, stride: int
) -> list[nn.Module]:
    conv = nn.Conv2d(channels_in, channels, size, stride, size // 2, bias=False)
    return [conv, nn.BatchNorm2d(channels)]


class FastaiBlock(nn.Module):
    """A bottleneck; what it does without is not a module, and has no name."""

    def __init__(self, channels_in: int, width: int, stride: int, *, sa: bool) -> None:
        super().__init__()
        self.convs = nn.Sequential(
            nn.Sequential(*fastai_conv(channels_in, width, 1, 1), nn.Mish()),
            nn.Sequential(*fastai_conv(width, width, 3, stride), nn.Mish()),
            nn.Sequential(*fastai_conv(width, 4 * width, 1, 1)),
        )
        if sa:
            self.sa = FastaiAttention(4 * width)
        if channels_in != 4 * width:
            self.idconv = nn.Sequential(*fastai_conv(channels_in, 4 * width, 1, 1))
        if stride > 1:
            self.pool = nn.AvgPool2d(2, ceil_mode=True)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        branch_BCHW = self.convs(x_BCHW)
        if hasattr(self, "sa"):
            branch_BCHW = self.sa(branch_BCHW)
        for part in ("pool", "idconv"):
            x_BCHW = getattr(self, part)(x_BCHW) if hasattr(self, part) else x_BCHW
        return nn.functional.mish(branch_BCHW + x_BCHW)


def fastai_mxresnet50() -> nn.Sequential:
    """The layout of lessw2020's mxresnet50(c_out=6, sa=True)."""
    stem = [
        nn.Sequential(*fastai_conv(channels_in, channels, 3, stride), nn.Mish())
        for channels_in, channels, stride in ((3, 32, 2), (32, 64, 1), (64, 64, 1))
    ]
    stages, channels = [], 64
    for stage, (num_blocks, width) in enumerate(
        zip((3, 4, 6, 3), (64, 128, 256, 512), strict=True)
    ):
        blocks = []
        for block in range(num_blocks):
            stride = 2 if stage and block == 0 else 1
            has_sa = stage == 0 and block == num_blocks - 1
            blocks.append(FastaiBlock(channels, width, stride, sa=has_sa))
            channels = 4 * width
        stages.append(nn.Sequential(*blocks))
    return nn.Sequential(
        *stem,
        nn.MaxPool2d(3, 2, 1),
        *stages,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(2048, 6),
    )


@pytest.fixture(scope="module")
def trained() -> nn.Sequential:
    """Such a network with every tensor different, in evaluation mode."""
    torch.manual_seed(0)
    model = fastai_mxresnet50()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                for tensor in (module.weight, module.running_var):
                    assert tensor is not None
                    tensor.uniform_(0.5, 1.0)
                for tensor in (module.bias, module.running_mean):
                    assert tensor is not None
                    tensor.normal_(0, 0.1)
            if isinstance(module, FastaiAttention):
                module.gamma.fill_(0.1)  # enough to be seen in the logits
    return model.eval()


def save(path: Path, state: dict[str, Tensor]) -> Path:
    """As fastai's `Learner.save` does: weights, and its optimizer's state."""
    torch.save({"model": state, "opt": {"state": {}, "param_groups": []}}, path)
    return path


def test_it_gives_the_logits_that_fastai_gave(
    trained: nn.Sequential, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = save(tmp_path / "exp_10.pth", trained.state_dict())
    with caplog.at_level(logging.INFO):
        ours = build_model("xresnet50-attn", in_chans=3, weights=path).eval()
    images_BCHW = torch.randn(2, 3, 65, 64)
    with torch.inference_mode():
        expected_BK, found_BK = trained(images_BCHW), ours(images_BCHW)
    torch.testing.assert_close(found_BK, expected_BK, rtol=1e-3, atol=1e-4)
    assert expected_BK.std() > 1e-2
    assert "holds fastai's mxresnet50; its tensors are renamed" in caplog.text


def test_every_tensor_has_its_place(trained: nn.Sequential) -> None:
    state = trained.state_dict()
    renamed = from_fastai_mxresnet(state)
    wanted = build_model("xresnet50-attn", in_chans=3).state_dict()
    assert {n: t.shape for n, t in renamed.items()} == {
        n: t.shape for n, t in wanted.items()
    }
    assert all(t is u for t, u in zip(state.values(), renamed.values(), strict=True))


def test_its_three_channels_are_summed_for_one(
    trained: nn.Sequential, tmp_path: Path
) -> None:
    path = save(tmp_path / "exp_10.pth", trained.state_dict())
    ours = build_model("xresnet50-attn", in_chans=1, weights=path).eval()
    gray_BCHW = torch.randn(1, 1, 64, 64)
    with torch.inference_mode():
        expected_BK = trained(gray_BCHW.expand(-1, 3, -1, -1))
        found_BK = ours(gray_BCHW)
    torch.testing.assert_close(found_BK, expected_BK, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("4.2.sa.gamma", "stages.0.2.attention.gamma is missing"),
        ("7.2.convs.1.1.bias", "stages.3.2.convs.2.1.bias is missing"),
    ],
)
def test_one_that_is_not_whole_is_refused(
    name: str, message: str, trained: nn.Sequential, tmp_path: Path
) -> None:
    state = {n: tensor for n, tensor in trained.state_dict().items() if n != name}
    with pytest.raises(ModelError, match=message):
        build_model(
            "xresnet50-attn", in_chans=3, weights=save(tmp_path / "w.pth", state)
        )


def test_ours_is_not_taken_for_it() -> None:
    assert not is_fastai_mxresnet(build_model("xresnet50-attn").state_dict())
