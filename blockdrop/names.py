"""The names that networks, engines and number formats go by in flags and calls.

Without torch, so that a command line is understood without loading it.
"""

from __future__ import annotations

from typing import Literal, get_args

Shortcut = Literal["pad_avgpool", "pad_stride", "projection"]
SHORTCUTS: tuple[Shortcut, ...] = get_args(Shortcut)
ServiceName = Literal["wandb", "mlflow"]
"""Where metrics may go, too."""
ReductionMode = Literal["block", "net", "depthwise", "shuffle", "mobile"]
REDUCTION_MODES: tuple[ReductionMode, ...] = get_args(ReductionMode)
PolicyNet = Literal["reference", "pooled", "pooled4", "stem", "constant"]
"""reference: a ResNet-8 (224 px: the image pooled by 2, a [1, 1, 1, 1] ResNet). pooled, pooled4: the same on an
image pooled by 2, 4 more. stem: two convolutions on the pooled output of the backbone's stem. constant: the same
keep probabilities for every image."""
POLICY_NETS: tuple[PolicyNet, ...] = get_args(PolicyNet)
DEFAULT_POLICY_NET: PolicyNet = "stem"
"""Of networks that are brought."""
INITIAL_KEEP = 0.9
"""Keep probability of every block for every image before policies are learned: all blocks run."""
Execution = Literal["sparse", "masked"]
"""How blocks are dropped in training: sparse runs a block for the images that need it, masked for all of them."""
EngineName = Literal["auto", "torch", "openvino"]
Precision = Literal["auto", "float32", "bfloat16"]
