"""The networks that are converted, and what is known about the symmetry of each.

Packages are imported where a network is built, so that this module can be collected without them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sre_triton import expand_kernel, project_kernel

__all__ = ["NETWORKS", "Network", "pretrained_like", "tensor_of"]


@dataclass(frozen=True)
class Network:
    """How to build a network and what becomes of it.

    Attributes:
        build: returns it, with random weights.
        channels: of its input.
        symmetric: spatial sizes at which it is symmetric after conversion.
        asymmetric: sizes at which it runs and is not, and the module that ``report`` has to name.
    """

    build: Callable[[], nn.Module]
    channels: int
    symmetric: tuple[tuple[int, ...], ...] = ()
    asymmetric: tuple[tuple[tuple[int, ...], str], ...] = ()

    @property
    def sizes(self) -> tuple[tuple[int, ...], ...]:
        return self.symmetric + tuple(size for size, _ in self.asymmetric)

    def sample(self, size: tuple[int, ...], batch: int = 2) -> Tensor:
        return torch.randn(batch, self.channels, *size, generator=torch.Generator().manual_seed(sum(size)))


def tensor_of(output: Any) -> Tensor:
    """The tensor that a network's output is about."""
    while not isinstance(output, Tensor):
        output = next(iter(output.values() if isinstance(output, dict) else output))
    return output


def pretrained_like(model: nn.Module, noise: float) -> nn.Module:
    """Gives a network what training gives: kernels that are smooth, i.e. nearly the same all around, and batch
    statistics and affine parameters that are not those of initialisation.

    Args:
        noise: of each kernel relative to its ring part; 0 for kernels that are constant on rings.
    """
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)):
            nn.init.normal_(module.running_mean, 0, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
        elif isinstance(module, (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
            size = module.kernel_size
            if size[0] % 2 and len(set(size)) == 1:
                with torch.no_grad():
                    rings = expand_kernel(project_kernel(module.weight), size)
                    rings *= module.weight.norm() / rings.norm()
                    module.weight.copy_(rings + noise * rings.std() * torch.randn_like(rings))
    return model


def _basic_unet(ndim: int, **options: Any) -> nn.Module:
    from monai.networks.nets import BasicUNet

    return BasicUNet(spatial_dims=ndim, in_channels=1, out_channels=2, features=(8, 8, 16, 32, 32, 8), **options)


def _segresnet(ndim: int) -> nn.Module:
    from monai.networks.nets import SegResNet

    return SegResNet(spatial_dims=ndim, in_channels=1, out_channels=2, init_filters=8)


def _dynunet(ndim: int) -> nn.Module:
    from monai.networks.nets import DynUNet

    return DynUNet(
        ndim, 1, 2, kernel_size=[3, 3, 3], strides=[1, 2, 2], upsample_kernel_size=[2, 2], filters=[8, 16, 16],
        res_block=True,
    )  # fmt: skip


def _monai_resnet18(ndim: int) -> nn.Module:
    from monai.networks.nets import resnet18

    return resnet18(spatial_dims=ndim, n_input_channels=1, num_classes=5, widen_factor=0.25)


def _torchvision(name: str) -> nn.Module:
    from torchvision import models

    return models.get_model(name, num_classes=10)


def _timm(name: str) -> nn.Module:
    import timm

    return timm.create_model(name, num_classes=10)


def _smp_unet() -> nn.Module:
    import segmentation_models_pytorch as smp

    return smp.Unet("resnet18", encoder_weights=None, classes=2, decoder_channels=(64, 32, 16, 16, 8))


def _hf_resnet() -> nn.Module:
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(embedding_size=16, hidden_sizes=[16, 32, 48, 64], depths=[2, 2, 2, 2], layer_type="basic")
    return ResNetForImageClassification(config)


def _hf_convnext() -> nn.Module:
    from transformers import ConvNextConfig, ConvNextForImageClassification

    return ConvNextForImageClassification(ConvNextConfig(hidden_sizes=[16, 24, 32, 48], depths=[1, 1, 2, 1]))


def _cube(*sides: int) -> tuple[tuple[int, ...], ...]:
    return tuple((n, n, n) for n in sides)


_INTERPOLATING = {"upsample": "nontrainable"}

NETWORKS: dict[str, Network] = {
    # Its up-convolutions are 2x2, and it pads one side of maps that have become too small.
    "monai_basic_unet_2d": Network(
        lambda: _basic_unet(2),
        1,
        asymmetric=(
            ((32, 32), "upcat_4.upsample.deconv"),
            ((33, 35), "upcat_4.upsample.deconv"),
        ),
    ),
    "monai_basic_unet_2d_interpolating": Network(
        lambda: _basic_unet(2, **_INTERPOLATING),
        1,
        symmetric=((32, 32), (64, 48)),
        asymmetric=(((48, 40), "upcat_4"), ((33, 35), "upcat_2")),
    ),
    "monai_basic_unet_3d_interpolating": Network(
        lambda: _basic_unet(3, **_INTERPOLATING), 1, symmetric=_cube(32), asymmetric=(((32, 32, 40), "upcat_4"),)
    ),
    "monai_segresnet_2d": Network(lambda: _segresnet(2), 1, symmetric=((32, 32), (24, 40))),
    "monai_segresnet_3d": Network(lambda: _segresnet(3), 1, symmetric=_cube(16)),
    "monai_dynunet_2d": Network(
        lambda: _dynunet(2),
        1,
        asymmetric=(((32, 32), "upsamples.0.transp_conv.conv"), ((28, 24), "upsamples.0.transp_conv.conv")),
    ),
    "monai_dynunet_3d": Network(lambda: _dynunet(3), 1, asymmetric=(((16, 16, 16), "upsamples.0.transp_conv.conv"),)),
    "monai_resnet18_2d": Network(lambda: _monai_resnet18(2), 1, symmetric=((32, 32), (33, 37))),
    "monai_resnet18_3d": Network(lambda: _monai_resnet18(3), 1, symmetric=((16, 16, 16), (15, 18, 17))),
    "transformers_resnet": Network(_hf_resnet, 3, symmetric=((32, 32), (33, 37))),
    "transformers_convnext": Network(
        _hf_convnext,
        3,
        asymmetric=(
            ((64, 64), "convnext.embeddings.patch_embeddings"),
            ((70, 65), "convnext.embeddings.patch_embeddings"),
        ),
    ),
    "torchvision_resnet18": Network(
        lambda: _torchvision("resnet18"), 3, symmetric=((32, 32), (33, 33), (47, 50), (64, 64))
    ),
    "torchvision_densenet121": Network(lambda: _torchvision("densenet121"), 3, symmetric=((32, 32), (37, 33))),
    "torchvision_mobilenet_v3_small": Network(
        lambda: _torchvision("mobilenet_v3_small"), 3, symmetric=((32, 32), (33, 37))
    ),
    "torchvision_convnext_tiny": Network(
        lambda: _torchvision("convnext_tiny"), 3, asymmetric=(((32, 32), "features.0.0"), ((35, 39), "features.0.0"))
    ),
    "timm_resnet26d": Network(lambda: _timm("resnet26d"), 3, symmetric=((32, 32), (33, 37))),
    "smp_unet_resnet18": Network(_smp_unet, 3, symmetric=((32, 32), (64, 32))),
}
