# %% [markdown]
# # Train, evaluate, film
#
# Three commands from drawn vessels to a film: a ring U-Net learns for a few
# seconds, is tested at every 30°, and is shown a photograph that turns. `main` is
# what the command `sre-triton` runs; in a shell write `sre-triton segment ...`. The
# extra `train` has all that it takes, and nothing is downloaded. For your own
# pictures put `--data FOLDER` in the place of `--vessels-...`.

# %%
import base64
import tempfile
from pathlib import Path

import numpy as np
from IPython.display import HTML, Image
from skimage.data import retina
from skimage.io import imsave
from skimage.transform import resize

import sre_triton
from sre_triton.cli import main

folder = Path(tempfile.mkdtemp())

# %% [markdown]
# ## Train
#
# Eight pictures of 128 pixels, six epochs: enough to see how it goes, and no more.
# `--balance-rings` lets large rings learn at the pace of small ones, and
# `--invariants` lets them see lines.

# %%
status = main(
    f"""
    segment --vessels-size 128 --vessels-count 8 2 3 --crop-size 64
    --window-size 128 --crops-per-image 8 -b 8 --epochs 6 --one-cycle --lr 1e-2
    --balance-rings --invariants --loss dice-ce --normalise field
    --base-log-dir {folder} --model-args {{"features":[16,16,32]}} --quiet
    """.split()
)
assert status == 0
(run,) = (folder / "task").iterdir()
print(run.name)
print(*sorted(path.name for path in run.iterdir()), sep="\n")

# %% [markdown]
# `curves.png` has the losses and scores of every epoch:

# %%
Image(run / "curves.png")

# %% [markdown]
# ## Evaluate
#
# The test pictures are turned, and scores are taken inside what stays in the frame.
# `evaluate` takes several runs, too, and sets them side by side.

# %%
status = main(f"evaluate {run} --step-degrees 30 --quiet".split())
assert status == 0
results = run / "evaluation-test"
print(*sorted(path.name for path in results.iterdir()), sep="\n")

# %%
Image(results / "rotation.png")

# %% [markdown]
# ## Film
#
# A photograph of the back of an eye turns; the film shows what the network sees and
# finds. Six epochs on drawn vessels make no ophthalmologist: the network
# `vessels`, which comes with the package, was trained on photographs.

# %%
photograph = (resize(retina(), (144, 144), anti_aliasing=True) * 255).astype(
    np.uint8
)
imsave(folder / "eye.png", photograph, check_contrast=False)
status = main(
    f"""
    visualize {folder}/eye.png --checkpoint vessels --against {run}
    --step-degrees 30 --output {folder}/film --quiet
    """.split()
)
assert status == 0
print(*sorted(path.name for path in (folder / "film").iterdir()), sep="\n")

# %%
film = base64.b64encode((folder / "film" / "turning.gif").read_bytes()).decode()
HTML(f'<img src="data:image/gif;base64,{film}" alt="a photograph that turns">')

# %% [markdown]
# ## In Python
#
# `load` gives a trained network with its preprocessing. A ring network's answer
# turns with the picture:

# %%
trained = sre_triton.load(run)
found = trained.probabilities(photograph)[1]
turned = trained.probabilities(np.rot90(photograph).copy())[1]
change = np.abs(np.rot90(found) - turned).max()
print(f"largest change of a probability at a quarter turn: {change:.1e}")
assert change < 1e-3
