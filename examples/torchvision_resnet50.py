"""A torchvision ResNet-50 on a folder of photos: it learns which of its blocks each photo needs.

python examples/torchvision_resnet50.py PHOTOS [WEIGHTS]

PHOTOS holds train/<class>/… and test/<class>/… (without it, pictures of noise stand in); WEIGHTS is the ResNet's
state_dict, trained on these classes.
"""

import os
import sys

import torch
from torchvision.datasets import ImageFolder
from torchvision.models import resnet50
from torchvision.transforms import v2
from torchvision.utils import save_image

import blockdrop

folder, size, epochs = (sys.argv[1], 224, 30) if sys.argv[1:] else ("noise", 32, 1)
for part in () if sys.argv[1:] else ("train/cat", "train/dog", "test/cat", "test/dog"):
    os.makedirs(f"{folder}/{part}", exist_ok=True)
    for number in range(8):
        save_image(torch.rand(3, size, size), f"{folder}/{part}/{number}.png")
model = resnet50(num_classes=len(ImageFolder(f"{folder}/train").classes))
if sys.argv[2:]:
    model.load_state_dict(torch.load(sys.argv[2], weights_only=True))
dynamic = blockdrop.make_dynamic(model, policy_net="stem", image_size=size)
train_data = ImageFolder(f"{folder}/train", v2.Compose([v2.RandomHorizontalFlip(), dynamic.transform]))
test_data = ImageFolder(f"{folder}/test", dynamic.transform)
dynamic, report = blockdrop.train(dynamic, train_data, test_data, budget=0.6, epochs=epochs, run_dir="run")
print(report)

dynamic.save("mine.t7")
run = blockdrop.load("mine.t7", model=model).compile()
logits, policy = run(test_data[0][0][None])
print(
    f"first photo: {test_data.classes[int(logits.argmax())]}, {int(policy.sum())} of {dynamic.num_blocks} blocks"
)
