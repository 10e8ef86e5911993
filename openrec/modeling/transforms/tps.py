"""Thin-plate-spline rectification: bent text becomes straight before it is read.

Idea: Shi et al., "Robust Scene Text Recognition with Automatic Rectification" (RARE), CVPR 2016; "ASTER: An
Attentional Scene Text Recognizer with Flexible Rectification", PAMI 2019. With ``model_name`` the class is OpenOCR's
``TPS`` (Topdu/OpenOCR, Apache-2.0), whose weights load.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from openrec.errors import ConfigError
from openrec.modeling.record import record
from openrec.modeling.transforms.heads import CHANNELS, LocalizationNetwork, STNHead
from openrec.modeling.transforms.rectifier import Rectifier, checked_size
from openrec.modeling.transforms.thin_plate import GridGenerator, ThinPlate, first_points

OUTPUT_SIZE = (32, 128)  # without OpenOCR's network


class TPS(Rectifier):
    """Thin-plate spline through ``num_fiducial`` points, half along the top of the text, half along its bottom.

    Args:
        num_fiducial: number of points, even.
        model_name: null: ASTER's localisation network on a copy of ``loc_size``. ``small`` or ``large``: OpenOCR's
            network, which looks at the image itself; then the points start as ``rare``, the output has the input's
            size and zeros (mid-grey) lie outside, and ``loc_size``, ``channels``, ``hidden`` must be left out.
        loc_size: [height, width] px, multiples of 32; default [32, 64].
        output_size: [height, width] px of the result, the encoder's ``max_sz``; default [32, 128].
        padding_mode: ``border``, ``zeros`` or ``reflection``.
        init: ``identity``; ``aster``: slightly zoomed out; ``rare``: a shear, for training that does not leave the
            identity by itself.
        margin: of the target points from the output's border; default 0.05, for ``rare`` 0.
        freeze_steps: training steps for which the warp stays as it starts.
        channels, hidden: widths of the localisation network; defaults: ASTER's.

    Raises:
        ConfigError: values outside these.
    """

    ignored_keys = ("loc_lr",)  # OpenOCR reads it nowhere; here: Optimizer.lr_mult

    @classmethod
    def given_size(cls, arguments: Mapping[str, Any]) -> tuple[int, int] | None:
        default = None if arguments.get("model_name") else OUTPUT_SIZE
        return super().given_size({"output_size": arguments.get("output_size") or default})

    def __init__(
        self,
        in_channels: int = 3,
        num_fiducial: int = 20,
        model_name: str | None = None,
        *,
        loc_size: Sequence[int] | None = None,
        output_size: Sequence[int] | None = None,
        padding_mode: str | None = None,
        init: str | None = None,
        margin: float | None = None,
        freeze_steps: int = 0,
        channels: Sequence[int] | None = None,
        hidden: int | None = None,
    ):
        if model_name is not None:
            own = {"loc_size": loc_size, "channels": channels, "hidden": hidden, "margin": margin}
            given = [key for key, value in own.items() if value is not None]
            if given:
                raise ConfigError(
                    f"Transform: {', '.join(given)} belong to ASTER's localisation network, model_name: {model_name} "
                    "to OpenOCR's, which has its own sizes. Leave the one or the other out."
                )
        elif output_size is None:
            output_size = OUTPUT_SIZE
        super().__init__(in_channels, output_size, padding_mode or ("zeros" if model_name else "border"), freeze_steps)
        init = init or ("rare" if model_name else "identity")
        margin = margin if margin is not None else 0.0 if init == "rare" or model_name else 0.05
        start = first_points(num_fiducial, init, margin)
        self.loc_size = checked_size("loc_size", loc_size or (32, 64))
        self.stn_head: STNHead | None = None
        if model_name is not None:
            self.loc_net = LocalizationNetwork(in_channels, model_name, start)
            self.grid_generator = GridGenerator(num_fiducial)
        else:
            self.stn_head = STNHead(in_channels, self.loc_size, start, channels or CHANNELS, hidden or 512)
            self.spline = ThinPlate(num_fiducial, margin, self.output_size)

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, C, H, W] of any size -> [B, C, *output_size]."""
        if self.stn_head is None:
            source = self.held(self.loc_net(x)).view(x.shape[0], -1, 2)
            grid = self.grid_generator(source, self.output_size or (x.shape[2], x.shape[3]))
        else:
            small = F.interpolate(x, self.loc_size, mode="bilinear", align_corners=False)
            source = self.held(self.stn_head(small)).view(x.shape[0], -1, 2)
            grid = self.spline(source)
        record(self, "fiducial", (source + 1) / 2)
        return self.sample(x, grid)
