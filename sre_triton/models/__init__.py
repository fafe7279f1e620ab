"""Networks whose answer does not depend on how the image is turned.

Logits do not change, and maps turn along, when the image is flipped or turned by 90 degrees, at any size and
but for rounding. ``list_models()`` names them all; each is also a function or class here.
"""

from sre_triton.conversion.fusion import fold_batch_norm
from sre_triton.models.checkpoint import ReferenceCheckpoint, load_reference_checkpoint
from sre_triton.models.named_resnets import (
    gmr_r3d_18,
    gmr_resnet18,
    gmr_resnet34,
    gmr_resnet50,
    r3d_18,
    r3d_34,
    resnet18,
    resnet34,
    resnet50,
    resnet101,
    sre_r3d_18,
    sre_r3d_34,
    sre_resnet18,
    sre_resnet34,
    sre_resnet50,
    sre_resnet101,
)
from sre_triton.models.registry import entry, get_model, list_models
from sre_triton.models.residual_blocks import BasicBlock, Bottleneck
from sre_triton.models.resnet import ResNet
from sre_triton.models.unet import (
    GMRUNet,
    SREUNet,
    UNet,
    gmr_unet,
    gmr_unet_3d,
    plain_unet,
    plain_unet_3d,
    sre_unet,
    sre_unet_3d,
)

__all__ = [
    "BasicBlock",
    "Bottleneck",
    "GMRUNet",
    "ReferenceCheckpoint",
    "ResNet",
    "SREUNet",
    "UNet",
    "entry",
    "fold_batch_norm",
    "get_model",
    "gmr_r3d_18",
    "gmr_resnet18",
    "gmr_resnet34",
    "gmr_resnet50",
    "gmr_unet",
    "gmr_unet_3d",
    "list_models",
    "load_reference_checkpoint",
    "plain_unet",
    "plain_unet_3d",
    "r3d_18",
    "r3d_34",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "sre_r3d_18",
    "sre_r3d_34",
    "sre_resnet18",
    "sre_resnet34",
    "sre_resnet50",
    "sre_resnet101",
    "sre_unet",
    "sre_unet_3d",
]
