# %% [markdown]
# # Swapping a U-Net of MONAI
#
# A network that somebody else wrote becomes a ring network by one call, and learns
# on. This notebook measures what symmetry a U-Net of MONAI has, finds what breaks
# it, converts it, trains both on lines that run one way, and tests them on lines
# that run the other way. Nothing is downloaded; it takes about half a minute on a
# CPU. MONAI comes with the extra `train`.

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch
from monai.losses import DiceCELoss
from monai.networks.nets import BasicUNet
from skimage.draw import line
from torch import nn

import sre_triton

torch.manual_seed(0)
plt.rcParams.update({"figure.dpi": 110, "font.size": 8})

network = BasicUNet(
    spatial_dims=2,
    in_channels=1,
    out_channels=2,
    features=(8, 8, 16, 16, 16, 8),
    upsample="nontrainable",
    norm="batch",
)

# %% [markdown]
# ## What symmetry it has
#
# `report` runs a copy in float64 on the image turned and flipped, and names the
# modules whose inputs still had the symmetry and whose output has not.

# %%
image = torch.randn(1, 1, 48, 48)
error = sre_triton.equivariance_error(network.eval(), image)
print(f"relative error over all turns and flips: {error:.2f}")
found = sre_triton.report(network, image)
assert not found.symmetry.symmetric
print("first broken by", found.symmetry.first_break)

# %% [markdown]
# ## Convert it
#
# `kernel_size=5` gives every 3×3 layer rings up to two pixels from the centre,
# which costs additions and one weight. Convolutions are replaced by rings, and
# poolings by centred ones; the sizes of all maps stay, and so does everything else.

# %%
rings = sre_triton.convert(network, kernel_size=5, weights="reset")
found = sre_triton.report(rings, image)
lines = str(found).splitlines()  # one for each layer
print(*lines[:4], "...", *lines[-3:], sep="\n")
assert found.symmetry.symmetric
assert rings(image).shape == network(image).shape

# %% [markdown]
# ## Train both
#
# Lines in noise. Those of the training run from left to right, give or take 20°.


# %%
def drawn(count, degrees, seed, side=48):
    """Noisy pictures of three lines each near these directions, and their masks."""
    random = np.random.default_rng(seed)
    masks = np.zeros((count, side, side), dtype=np.float32)
    for mask in masks:
        for _ in range(3):
            angle = np.radians(random.uniform(*degrees))
            middle, reach = random.uniform(10, side - 10, 2), random.uniform(10, 20)
            step = reach * np.array([np.sin(angle), np.cos(angle)])
            ends = np.clip([middle - step, middle + step], 0, side - 1).astype(int)
            mask[line(*ends[0], *ends[1])] = 1
    pictures = masks * 1.2 + random.normal(0, 0.5, masks.shape).astype(np.float32)
    return torch.from_numpy(pictures)[:, None].float(), torch.from_numpy(masks)[
        :, None
    ]


def train(model, steps=60):
    torch.manual_seed(1)
    loss_of = DiceCELoss(to_onehot_y=True, softmax=True)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    sre_triton.balance_weights(
        model
    )  # for rings alone: others are left as they are
    handle = sre_triton.balance_steps(optimizer, model)
    model.train()
    losses = []
    for step in range(steps):
        pictures, masks = drawn(8, (-20, 20), seed=step)
        loss = loss_of(model(pictures), masks)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    handle.remove()
    return losses


networks = {"MONAI's U-Net": network, "the same of rings": rings}
losses = {name: train(model) for name, model in networks.items()}

figure, axes = plt.subplots(figsize=(5, 2.2))
for name, values in losses.items():
    count = sum(p.numel() for p in networks[name].parameters())
    axes.plot(values, label=f"{name}, {count:,} parameters")
axes.set(xlabel="step", ylabel="training loss")
_ = axes.legend(frameon=False)

# %% [markdown]
# ## Test them on lines of other directions
#
# The ordinary network is better on what it was trained on: nearly all lines ran one
# way, and it has learned that. It does not find them when they run the other way.
# The ring network cannot learn a direction, with a third of the parameters.


# %%
@torch.no_grad()
def dice(model, pictures, masks):
    answer = model.eval()(pictures).argmax(1, keepdim=True)
    return (2 * (answer * masks).sum() / (answer.sum() + masks.sum())).item()


pictures, masks = drawn(32, (-20, 20), seed=1000)
scores = {
    name: [
        dice(model, pictures.rot90(turns, (2, 3)), masks.rot90(turns, (2, 3)))
        for turns in (0, 1)
    ]
    for name, model in networks.items()
}
for name, (upright, turned) in scores.items():
    print(
        f"{name:18} Dice {upright:.3f} as trained, {turned:.3f} at a quarter turn"
    )

ours = scores["the same of rings"]
assert abs(ours[0] - ours[1]) < 0.002  # the same answer, turned
assert min(ours) > 0.5

# %%
figure, grid = plt.subplots(2, 4, figsize=(7, 3.6))
for row, turns in zip(grid, (0, 1), strict=True):
    shown = pictures[:1].rot90(turns, (2, 3))
    row[0].imshow(shown[0, 0], cmap="gray")
    row[0].set_title("as trained" if turns == 0 else "a quarter turn")
    row[1].imshow(masks[0, 0].rot90(turns), cmap="gray")
    row[1].set_title("the lines")
    for axes, (name, model) in zip(row[2:], networks.items(), strict=True):
        with torch.no_grad():
            axes.imshow(
                model.eval()(shown).softmax(1)[0, 1], cmap="gray", vmin=0, vmax=1
            )
        axes.set_title(name)
for axes in grid.flat:
    axes.set_axis_off()

# %% [markdown]
# ## Hand it on
#
# `fold` gives MONAI's network back, of ordinary convolutions: the same function
# without this package. It pays the dense price.

# %%
plain = sre_triton.fold(rings.eval(), fuse_batchnorm=True)
torch.testing.assert_close(
    plain(pictures[:4]), rings(pictures[:4]), rtol=1e-4, atol=1e-4
)
assert not any(
    isinstance(module, (sre_triton.SREConv2d, nn.BatchNorm2d))
    for module in plain.modules()
)
print(
    type(plain).__name__, sum(p.numel() for p in plain.parameters()), "parameters"
)
