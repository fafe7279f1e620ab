# %% [markdown]
# # The layer and its symmetry
#
# A ring convolution has one weight for each ring of its kernel. This notebook draws
# the rings, turns a photograph before and after the layer, and measures what each
# angle costs. It runs in seconds on a CPU and downloads nothing.

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch
from scipy.ndimage import gaussian_filter, rotate
from skimage.data import retina
from skimage.transform import resize
from torch import nn

import sre_triton

torch.manual_seed(0)
plt.rcParams.update(
    {
        "figure.dpi": 110,
        "font.size": 8,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
)

# %% [markdown]
# ## A kernel of rings
#
# `expand_kernel` gives the dense kernel of ring weights. Here each ring has its
# number for a weight; corners carry none.

# %%
figure, grid = plt.subplots(1, 4, figsize=(7, 2.2))
for axes, size in zip(grid, (3, 5, 7, 9), strict=True):
    rings = torch.arange(1.0, size // 2 + 2)
    kernel = sre_triton.expand_kernel(rings.reshape(1, 1, -1), (size, size))[0, 0]
    axes.imshow(kernel.where(kernel > 0, torch.nan), cmap="viridis")
    axes.set_title(f"{size}×{size}: {len(rings)} weights\nfor {size * size} taps")
    axes.set_axis_off()

# %% [markdown]
# ## Turn first, or convolve first
#
# `SREConv2d` takes the arguments of `nn.Conv2d`. What a quarter turn of the
# photograph changes in its output is a quarter turn, and rounding.

# %%
picture = resize(retina(), (160, 160), anti_aliasing=True).astype(np.float32)
photograph = torch.from_numpy(picture).permute(2, 0, 1)[None]
layers = {
    "nn.Conv2d": nn.Conv2d(3, 8, 9, padding=4),
    "SREConv2d": sre_triton.SREConv2d(3, 8, 9, padding=4),
    "SREConv2d, anti-aliased": sre_triton.SREConv2d(
        3, 8, 9, padding=4, antialias=True
    ),
}
for name, layer in layers.items():
    count = sum(p.numel() for p in layer.parameters())
    error = sre_triton.equivariance_error(
        layer, photograph
    )  # all 7 turns and flips
    print(f"{name:24} {count:5} parameters, relative error {error:.1e}")

assert sre_triton.equivariance_error(layers["SREConv2d"], photograph) < 1e-5
assert sre_triton.equivariance_error(layers["nn.Conv2d"], photograph) > 0.1

# %% [markdown]
# The same to look at: a feature map of the photograph, and that of the photograph
# turned by 90° and 40°, turned back.


# %%
@torch.no_grad()
def turned_back(layer, angle):
    turned = torch.from_numpy(
        rotate(picture, angle, reshape=False, order=1).clip(0, 1)
    ).permute(2, 0, 1)[None]
    return rotate(layer(turned)[0, 0].numpy(), -angle, reshape=False, order=1)


inside = (
    np.hypot(*(np.indices((160, 160)) - 79.5)) < 66
)  # elsewhere black corners turn in
figure, grid = plt.subplots(2, 4, figsize=(7, 3.6))
for row, name in zip(grid, ("nn.Conv2d", "SREConv2d, anti-aliased"), strict=True):
    upright = turned_back(layers[name], 0)
    low, high = np.percentile(upright[inside], (1, 99))
    for axes, angle in zip(row, (0, 40, 90), strict=False):
        axes.imshow(
            np.where(inside, turned_back(layers[name], angle), np.nan),
            cmap="magma",
            vmin=low,
            vmax=high,
        )
        axes.set_title(
            f"{angle}°, turned back" if angle else name.replace(", ", "\n")
        )
    difference = np.where(
        inside, np.abs(turned_back(layers[name], 40) - upright), np.nan
    )
    row[3].imshow(difference, cmap="magma", vmin=0, vmax=high - low)
    row[3].set_title("difference at 40°")
    for axes in row:
        axes.set_axis_off()

# %% [markdown]
# ## The other angles
#
# Between quarter turns no pixel lands on a pixel. How near a layer comes depends on
# how smooth the picture is and on how its rings are made: hard rings give each tap
# to one ring, anti-aliased ones share it out. The turning itself is done by cubic
# splines, and its error is part of the figure.

# %%
smooth = torch.from_numpy(gaussian_filter(picture, (2, 2, 0))).permute(2, 0, 1)[
    None
]
angles = range(5, 90, 10)
figure, axes = plt.subplots(figsize=(6.5, 2.6))
for (name, layer), marker in zip(layers.items(), "so^", strict=True):
    errors = [
        sre_triton.equivariance_error(layer, smooth, angle, margin=8)
        for angle in angles
    ]
    axes.semilogy(list(angles), errors, marker=marker, label=name)
    print(f"{name:24} at most {max(errors):.1e}")
axes.set(
    xlabel="angle in degrees", ylabel="relative error", xticks=range(0, 91, 15)
)
axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))

at_45 = {
    name: sre_triton.equivariance_error(layer, smooth, 45, margin=8)
    for name, layer in layers.items()
}
assert (
    at_45["SREConv2d, anti-aliased"] < at_45["SREConv2d"] < at_45["nn.Conv2d"] / 5
)

# %% [markdown]
# ## What breaks it
#
# The layer is symmetric at every size; a stride or an ordinary pooling is not.
# `MaxPool2d(3, 2, 1)` looks past the near edge of an even image and not past the
# far one. Centred poolings choose their window by the size of the map.

# %%
poolings = {
    "nn.MaxPool2d(2)": nn.MaxPool2d(2),
    "nn.MaxPool2d(3, 2, 1)": nn.MaxPool2d(3, 2, 1),
    "CenteredMaxPool2d(2)": sre_triton.CenteredMaxPool2d(2),
}
for name, pooling in poolings.items():
    for size in (32, 33):
        error = sre_triton.equivariance_error(
            pooling, torch.randn(1, 4, size, size)
        )
        print(f"{name:22} at {size} pixels: {error:.1e}")
        assert error == 0 or "Centered" not in name

# %% [markdown]
# ## The same function as a dense convolution
#
# A backend computes ring sums and one small product, and is held against the dense
# kernel. `explain` says which was taken on this machine, and why.

# %%
layer = layers["SREConv2d"]
kernel = sre_triton.expand_kernel(layer.weight, layer.kernel_size)
dense = nn.functional.conv2d(photograph, kernel, layer.bias, padding=4)
difference = (layer(photograph) - dense).abs().max()
print(f"largest difference from the dense convolution: {difference:.1e}")
print(sre_triton.explain(layer, photograph))
torch.testing.assert_close(layer(photograph), dense, rtol=1e-4, atol=1e-4)
